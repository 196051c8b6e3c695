"""benchmarks/gpu at its tiny size on a CPU: every stage to a page of figures, cut off by force on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures
from benchmarks.gpu import check, plan
from benchmarks.gpu.__main__ import clean, main
from benchmarks.gpu.parts import Call, Cut, Part, Settings
from benchmarks.gpu.results import MOST_CUTS, MOST_TRIES, Results, settled
from benchmarks.gpu.runner import Runner, calls_of
from benchmarks.gpu.stages import kernels, steps, suite
from benchmarks.kernels import verify

ROOT = Path(__file__).resolve().parents[2]


def settings(folder: Path, **changes: Any) -> Settings:
    base = {"out": folder / "out", "scratch": folder / "scratch", "tiny": True, "device": "cpu", "arch": 90,
            "model": None, "data": None}  # fmt: skip
    return Settings(**(base | changes))


def runner(folder: Path, *, budget: float = 60.0) -> Runner:
    own = settings(folder)
    origin = {"device": "tiny", "versions": {"torch": "0"}, "commit": "c", "size": "tiny"}
    return Runner(own, Results(own.out), origin, start=time.monotonic(), budget=budget)


def part(name: str, run: Callable[[Call], dict[str, Any]], seconds: float = 1.0, shared: bool = False) -> Part:
    return Part("real", name, seconds, run, shared)


@pytest.mark.slow
def test_all_stages_killed_on_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    monkeypatch.setenv("RMFAST_VERIFIED", str(out / "verified.json"))
    verify.remember("test_swiglu.py")  # the benchmark of an op runs its tests, which takes long in the interpreter
    flags = ["--size", "tiny", "--out", str(out), "--scratch", str(scratch), "--workers", "1", "--budget", "900"]
    flags += ["--commit", "c"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *flags], cwd=ROOT, env=environment,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert first.stdout is not None
    for line in first.stdout:  # in the middle of the second part of the first stage
        if line.startswith("suite/test_common ..."):
            break
    first.kill()
    assert first.wait(timeout=30) == -signal.SIGKILL
    before = Results(out).stage("suite")
    assert list(before) == ["test_tables"] and before["test_tables"]["status"] == "done"

    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "suite/test_tables ..." not in printed and "suite/test_common: done" in printed
    assert Results(out).stage("suite")["test_tables"] == before["test_tables"]
    assert "0 parts left" in printed.splitlines()[-1]
    for stage in plan.STAGES:
        for record in Results(out).stage(stage).values():
            assert record["status"] == "done" and record["device"] == "tiny" and record["versions"]["torch"]
    assert "2 files" in printed and " 0 failed" in printed and "hf-packed" in printed
    kernels = Results(out).stage("kernels")["swiglu"]["result"]
    assert kernels["limits"]["bandwidth"] > 0 and {row["contender"] for row in kernels["results"]} == {"torch"}
    assert not kernels["skipped"]
    (line,) = Results(out).stage("tiles")["sinkhorn"]["result"]["lines"]
    assert len(line["tried"]) == 2 and not any(row["faults"] for row in line["tried"]) and line["winner"] is None
    assert line["tried"][0]["tile"] != line["tried"][1]["tile"] and line["tried"][0]["registers"] > 0
    steps = Results(out).stage("steps")["tiny"]["result"]
    losses = {mode: runs[0]["loss"] for mode, runs in steps["rounds"].items()}
    assert losses["hf-packed"] == pytest.approx(losses["rmfast"], abs=1e-5)
    assert steps["summary"]["rmfast"]["share_of_product"] > 0
    real = Results(out).stage("real")
    found = real["hh seed 0"]["result"]["tests"]["hh"]["figures"]
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1
    assert {row["term"] for row in real["moving seed 0"]["result"]["contrastive"]} >= {"none", "simcse", "swav"}
    assert sum(path.is_file() for path in out.iterdir()) <= 8

    start = time.monotonic()
    assert main(flags) == 0  # nothing is left
    assert time.monotonic() - start < 20 and " ..." not in capsys.readouterr().out

    monkeypatch.setattr(figures, "PAGES", ())
    monkeypatch.setattr(figures, "PLOTS", tmp_path / "plots")
    assert figures.main(["--gpu", str(out)]) == 0
    page = (out / "README.md").read_text()
    for word in ("`swiglu`", "sinkhorn columns", "transformers, packed, no shared prefix", "hh seed 0", "| passed |"):
        assert word in page
    for name in re.findall(r"!\[\w+\]\((\S+)\)", page):
        assert (out / name).stat().st_size > 10_000
    assert page.count("](plots/") == 5 and "contrastive less none: overlap" in page


def test_a_part_that_is_cut_off_waits_for_more_time_and_is_given_up_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(call: Call) -> dict[str, Any]:
        call.run(sys.executable, "-c", "import time; time.sleep(60)")
        raise AssertionError

    monkeypatch.setattr("benchmarks.gpu.runner.GRACE", 0.4)
    slow = part("slow", long, seconds=0.1)
    for tries in range(1, MOST_TRIES + 1):
        own = runner(tmp_path, budget=60.0)
        own.end = time.monotonic() + 0.2 + own.expected(slow)
        left = own.run([slow])
        record = own.results.stage("real")["slow"]
        assert record["status"] == "cut" and record["tries"] == tries and bool(left) == (tries < MOST_TRIES)
        assert own.expected(slow) == pytest.approx(1.5 * record["seconds"])
        if left:  # as much time as it had is not enough any more
            few = runner(tmp_path, budget=60.0)
            few.end = time.monotonic() + record["seconds"]
            assert few.run([slow]) == [slow]
            assert own.results.stage("real")["slow"]["tries"] == tries


def test_a_long_part_that_is_cut_starts_again_in_the_next_call_until_it_is_given_up(tmp_path: Path) -> None:
    ran: list[str] = []

    def cut(call: Call) -> dict[str, Any]:
        ran.append("")
        raise Cut

    long = part("long", cut, 285.0)
    keeps = Part("real", "keeps", 420.0, cut, keeps=True)
    own = runner(tmp_path)
    for number, one in enumerate([long] * 3 + [keeps] * MOST_CUTS):
        own.results.record("real", "x", status="done")
        before = len(ran)
        call = runner(tmp_path, budget=480.0)
        left = call.run([one])
        assert len(ran) == before + 1, (number, one.name)  # as 1.5 times 340 s is more than the budget, it never did
        parts = json.loads(own.results.path("real").read_text())["parts"]
        parts[one.name]["seconds"] = 340.0
        own.results.path("real").write_text(json.dumps({"stage": "real", "parts": parts}))
        assert call.expected(one) == (420.0 if one.keeps else pytest.approx(465.0, abs=0.1))
        assert bool(left) == (number not in (2, 2 + MOST_CUTS))
    assert own.results.stage("real")["keeps"]["tries"] == 0
    assert runner(tmp_path, budget=200.0).too_long([long, part("new", cut, 285.0), part("short", cut)])[0].name == "new"


def test_a_budget_that_is_too_small_for_a_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--size", "tiny", "--out", str(tmp_path), "--scratch", str(tmp_path / "s"), "--commit", "c"]
    assert main([*flags, "--budget", "16", "--only", "steps/"]) == 1
    assert "steps/tiny takes about 20 s and can never start; give 40" in capsys.readouterr().err


def test_failures_are_kept_with_their_words_and_the_others_go_on(tmp_path: Path) -> None:
    def breaks(call: Call) -> dict[str, Any]:
        call.run(sys.executable, "-c", "import sys; sys.exit('the disk is full')")
        return {}

    def mistake(call: Call) -> dict[str, Any]:
        raise KeyError("nothing")

    own = runner(tmp_path)
    parts = [part("breaks", breaks), part("mistake", mistake), part("good", lambda call: {"x": 1})]
    for _ in range(MOST_TRIES + 1):
        left = own.run(parts)
    records = own.results.stage("real")
    assert not left and records["good"] == records["good"] | {"status": "done", "tries": 1, "result": {"x": 1}}
    assert records["breaks"]["tries"] == MOST_TRIES and "the disk is full" in records["breaks"]["error"]
    assert "KeyError" in records["mistake"]["error"] and settled(records["mistake"])
    assert "the disk is full" in (tmp_path / "out" / "log.txt").read_text() or records["breaks"]["error"]
    own.stop()  # from outside, as SIGTERM does: what is ended then is no try, and nothing is started any more
    assert own.run([part("late", breaks)])[0].name == "late" and "late" not in own.results.stage("real")
    own.results.forget("real", "breaks")
    assert "breaks" not in own.results.stage("real")


def test_parts_start_only_where_they_fit_in_their_order(tmp_path: Path) -> None:
    ran: list[str] = []

    def note(name: str) -> Callable[[Call], dict[str, Any]]:
        return lambda call: ran.append(name) or {}  # type: ignore[func-returns-value]

    parts = [part("long", note("long"), 100.0), part("a", note("a"), 5.0), part("b", note("b"), 5.0, shared=True),
             part("c", note("c"), 5.0, shared=True)]  # fmt: skip
    own = runner(tmp_path, budget=66.0)
    assert [p.name for p in own.run(parts)] == ["long"] and ran[0] == "a" and sorted(ran) == ["a", "b", "c"]
    assert [p.name for p in runner(tmp_path, budget=66.0).run(parts)] == ["long"] and len(ran) == 3
    assert not runner(tmp_path, budget=166.0).run(parts) and ran[-1] == "long"


def test_the_plan_falls_into_calls_and_every_part_once(tmp_path: Path) -> None:
    parts = plan.parts(settings(tmp_path, tiny=False, device="cuda"))
    labels = [p.label for p in parts]
    assert len(labels) == len(set(labels)) and {p.stage for p in parts} == set(plan.STAGES)
    calls = calls_of(parts, 480.0)
    assert sorted(p.label for call in calls for p in call) == sorted(labels)
    first = [p.label for call in calls[:3] for p in call]
    assert {label.split("/")[0] for label in first} == set(plan.STAGES)  # three calls touch every stage
    assert max(p.seconds for p in parts) <= 480
    with pytest.raises(ValueError, match="more than the budget"):
        calls_of(parts, 100.0)
    for file in suite.files():
        assert (ROOT / file).is_file()


def test_what_is_missing_is_said_before_time_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    device = {"cuda": True, "name": "card", "capability": 90, "memory_gib": 40.0}
    monkeypatch.setattr(check, "probe", lambda: device)
    monkeypatch.setattr(check, "imports", lambda _: "cannot be used: ImportError")
    assert main(["--check", "--data", str(tmp_path / "data"), "--model", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "imports   cannot be used: ImportError" in printed
    assert "card, sm_90, 40 GiB" in printed and "warning" in printed
    assert "harmless_base_test.jsonl.gz" in printed and "no Hugging Face folder" in printed
    assert re.search(r"parts cannot run: .*real/hh seed 0", printed) and "call 1: suite/" in printed
    monkeypatch.setattr(check, "probe", lambda: {"cuda": False, "capability": 0, "memory_gib": 0.0})
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "NVIDIA H100"}, "is of device NVIDIA H100, this is tiny"),
        ({"commit": "old"}, "is of commit old, this is new"),
        ({"versions": {"torch": "1.0"}}, "is of torch 1.0, this is "),
        ({"size": "real"}, "is of size real, this is tiny"),
    ],
)
def test_results_of_another_origin_are_not_mixed_in(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = {"device": "tiny", "commit": "new", "size": "tiny", "versions": check.versions() | {"absent": "1"}}
    results = Results(tmp_path)
    flags = ["--size", "tiny", "--out", str(tmp_path), "--scratch", str(tmp_path / "s"), "--commit", "new"]
    flags += ["--only", "test_tables"]
    for change, code in ((changes, 1), ({}, 0)):
        results.record("suite", "test_tables", status="done", result=TESTED, seconds=1, **(origin | change))
        assert main(flags) == code
        assert (f"suite/test_tables {said}" in capsys.readouterr().err) == bool(code)
    results.record("suite", "test_tables", status="done", result=TESTED, seconds=1, **(origin | changes))
    assert main([*flags, "--mix"]) == 0


TESTED: dict[str, Any] = {"passed": 1, "failed": 0, "skipped": 0, "failures": []}


def test_a_tree_without_git_must_name_its_commit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    inside = tmp_path / "tree"
    inside.mkdir()
    assert check.commit(None, inside) is None and check.commit("abc", inside) == "abc"
    monkeypatch.setattr(check, "commit", lambda given: given)
    assert main(["--size", "tiny", "--out", str(tmp_path / "out"), "--only", "suite/"]) == 1
    assert "--commit: this tree has no .git" in capsys.readouterr().err


def test_what_failed_is_done_again_at_another_commit(tmp_path: Path) -> None:
    bad = TESTED | {"failed": 1, "failures": [{"test": "x", "why": "y"}]}
    refused = {"results": [], "skipped": [{"op": "x", "what": "", "why": "not reported, its tests fail: FAILED"}]}
    slow = {"results": [], "skipped": [{"op": "x", "what": "s flex", "why": "OutOfMemoryError"}]}
    for result, again in ((bad, True), (refused, True), (TESTED, False), (slow, False)):
        record = {"status": "done", "tries": 1, "commit": "a", "result": result}
        assert settled(record, "a") and settled(record, "b") is not again
    given_up = {"status": "failed", "tries": MOST_TRIES, "commit": "a"}
    assert settled(given_up, "a") and not settled(given_up, "b")
    own = Results(tmp_path)
    own.record("suite", "x", **given_up)
    own.record("suite", "x", status="failed", commit="b")
    assert own.stage("suite")["x"]["tries"] == 1  # three more at the new commit


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        (["--only", "zzz"], None, "--only zzz: in the name of no part; suite/"),
        (["--again", "zzz"], None, "--again zzz: in the name of no part"),
        ([], "{", "suite.json: damaged, or no results of this harness; move it away"),
        ([], "[]", "suite.json: damaged, or no results of this harness; move it away"),
        ([], '{"parts": {"x": {}}}', "suite.json: damaged, or no results of this harness; move it away"),
        (["--out", "FOLDER/file/out"], None, "--out FOLDER/file/out: cannot be written to (Not a directory)"),
        (["--scratch", "FOLDER/file/s"], None, "--scratch FOLDER/file/s: cannot be written to (Not a directory)"),
        (["--out", "FOLDER/none", "--show"], None, "--out FOLDER/none: no such folder"),
    ],
)
def test_odd_arguments_are_one_line(
    flags: list[str], text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    if text is not None:
        (tmp_path / "suite.json").write_text(text)
    before = {path: path.stat().st_mtime for path in tmp_path.iterdir()}
    base = ["--size", "tiny", "--out", str(tmp_path), "--scratch", str(tmp_path / "s"), "--commit", "c"]
    assert main([*base, *(flag.replace("FOLDER", str(tmp_path)) for flag in flags)]) == 2
    err = capsys.readouterr().err
    assert said.replace("FOLDER", str(tmp_path)) in err and len(err.splitlines()) == 1
    assert {path: path.stat().st_mtime for path in tmp_path.iterdir()} == before


def test_check_says_which_parts_a_budget_is_too_small_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "probe", lambda: {"cuda": False, "capability": 0, "memory_gib": 0.0})
    monkeypatch.setattr(check, "imports", lambda _: None)
    assert main(["--check", "--budget", "200"]) == 1
    printed = capsys.readouterr().out
    assert (
        "steps/llama-1b hh takes about 285 s and can never start; give 305" in printed and "call 1: suite/" in printed
    )


def test_the_commands_path_does_not_hide_a_package_named_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text("OTHER = 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path / "site")]))
    call = Call(settings(tmp_path), time.monotonic() + 60.0)
    show = "import kernels, rmfast, tempfile; print(kernels.OTHER, rmfast.__file__, tempfile.gettempdir())"
    other, where, temporary = call.run(sys.executable, "-P", "-c", show).split()
    assert other == "1" and Path(where).resolve().is_relative_to(ROOT / "rmfast")
    assert temporary == str(tmp_path / "scratch" / "tmp")
    monkeypatch.setattr(check, "IMPORTS", "import kernels.hub")
    assert "No module named 'kernels.hub'" in str(check.imports(settings(tmp_path)))
    monkeypatch.setattr(check, "IMPORTS", "import kernels")
    assert check.imports(settings(tmp_path)) is None


def test_a_stage_s_setup_is_in_the_guess_and_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def python(_: Call, _program: str, *words: object, **_more: str) -> str:
        ran.append(str(words[1]))
        if len(ran) == 3:
            raise Cut
        return ""

    monkeypatch.setattr(Call, "python", python)
    monkeypatch.setattr(kernels, "WARM", 1)
    own = runner(tmp_path, budget=480.0)
    first = Part("kernels", "x", 20.0, lambda call: {}, setup=150.0)
    assert own.guess(first) == 170.0
    assert [len(call) for call in calls_of([first, replace(first, name="y"), replace(first, name="z")], 190.0)] == [
        2,
        1,
    ]
    with pytest.raises(Cut):
        kernels.warm(Call(own.settings, time.monotonic() + 200.0))
    assert own.guess(first) == 170.0
    before = list(ran)
    kernels.warm(Call(own.settings, time.monotonic() + 200.0))
    assert own.guess(first) == 20.0 and not set(ran[len(before) :]) & set(before[:2])


def test_what_killed_calls_left_is_cleaned(tmp_path: Path) -> None:
    for name in ("kept.tar.gz.partial", "suite.partial", "verified.4711", "verified.json", "suite.json"):
        (tmp_path / name).touch()
    clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["suite.json", "verified.json"]


def test_modes_without_their_package_are_shown_and_done_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"trl"}
    find = lambda name: name in there or None  # noqa: E731
    monkeypatch.setattr(steps, "find_spec", find)
    monkeypatch.setattr("benchmarks.gpu.results.find_spec", find)
    assert steps.absent(steps.ALL) == {"trl-liger": "liger_kernel"}
    result = {"absent": steps.absent(steps.ALL), "failed": {"hf-packed": "does not fit: CUDA out of memory"}}
    assert steps.without(result)["trl-liger"] == "not installed: liger_kernel"
    record = {"status": "done", "tries": 1, "commit": "a", "result": result}
    assert settled(record, "b")  # what does not fit is a result
    there.add("liger_kernel")
    assert not settled(record, "a")
    record["result"] = {"failed": {"trl": "code 1"}}
    assert settled(record, "a") and not settled(record, "b")
