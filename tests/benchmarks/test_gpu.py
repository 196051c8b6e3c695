"""benchmarks/gpu at its tiny size on a CPU: every stage to a page of figures, cut off by force on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures
from benchmarks.gpu import check, plan
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import Call, Cut, Part, Settings
from benchmarks.gpu.results import MOST_CUTS, MOST_TRIES, Results, settled
from benchmarks.gpu.runner import Runner

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def imports_that_cost_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine must have is tried by imports that take seconds."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(check, "IMPORTS", dict.fromkeys(check.IMPORTS, ""))


def settings(folder: Path, **changes: Any) -> Settings:
    base = {"out": folder / "out", "scratch": folder / "scratch", "tiny": True, "device": "cpu", "arch": 90,
            "model": None, "data": None}  # fmt: skip
    return Settings(**(base | changes))


def runner(folder: Path, *, budget: float = 60.0, commit: str = "c") -> Runner:
    own = settings(folder)
    origin = {"device": "tiny", "versions": {"torch": "0"}, "commit": commit, "size": "tiny"}
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
    assert "2 parts" in printed and " 0 failed" in printed and "hf-packed" in printed
    kernels = Results(out).stage("kernels")["swiglu"]["result"]
    assert kernels["limits"]["bandwidth"] > 0 and {row["contender"] for row in kernels["results"]} == {"torch"}
    assert not kernels["skipped"] and kernels["tests"] == {"swiglu": "not run"}
    (line,) = Results(out).stage("tiles")["sinkhorn"]["result"]["lines"]
    assert len(line["tried"]) == 2 and not any(row["faults"] for row in line["tried"]) and line["winner"] is None
    assert line["tried"][0]["tile"] != line["tried"][1]["tile"] and line["tried"][0]["registers"] > 0
    steps = Results(out).stage("steps")["tiny"]["result"]
    losses = {mode: runs[0]["loss"] for mode, runs in steps["rounds"].items()}
    assert losses["hf-packed"] == pytest.approx(losses["rmfast"], abs=1e-5)
    assert steps["summary"]["rmfast"]["share_of_product"] > 0 and set(steps["breakdown"]) == set(losses)
    real = Results(out).stage("real")
    found = real["hh seed 0"]["result"]["tests"]["hh"]["figures"]
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1
    assert {row["term"] for row in real["moving seed 0"]["result"]["contrastive"]} >= {"none", "simcse", "swav"}
    assert sum(path.is_file() for path in out.iterdir()) <= 7  # with one that a killed call left half written: eight

    assert main(flags) == 0 and " ..." not in capsys.readouterr().out  # nothing is left

    monkeypatch.setattr(figures, "PAGES", ())
    monkeypatch.setattr(figures, "PLOTS", tmp_path / "plots")
    assert figures.main(["--gpu", str(out)]) == 0
    page = (out / "README.md").read_text()
    for word in (" swiglu ", "sinkhorn columns", " hf-packed ", "hh seed 0", " passed, 0 failed"):
        assert word in page
    for name in re.findall(r"!\[\w+\]\((\S+)\)", page):
        assert (out / name).stat().st_size > 10_000
    assert page.count("](plots/") == 5 and "contrastive less none: overlap" in page


def test_a_part_that_is_cut_off_waits_for_more_time_and_is_given_up_at_last(tmp_path: Path) -> None:
    def long(call: Call) -> dict[str, Any]:
        call.run(sys.executable, "-c", "import time; time.sleep(60)")
        raise AssertionError

    slow = part("slow", long, seconds=0.1)
    for tries in range(1, MOST_TRIES + 1):
        own = runner(tmp_path, budget=60.0)
        own.end = time.monotonic() + 0.05 + own.expected(slow)
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
        assert call.expected(one) == (420.0 if one.keeps else pytest.approx(455.0, abs=0.1))
        assert bool(left) == (number not in (2, 2 + MOST_CUTS))
    assert own.results.stage("real")["keeps"]["tries"] == 0
    assert runner(tmp_path, budget=200.0).too_long([long, part("new", cut, 285.0), part("short", cut)])[0].name == "new"


def test_a_part_that_keeps_what_it_has_starts_where_its_first_result_fits(tmp_path: Path) -> None:
    """What comes before it may take longer than guessed; the rest of it is another call's."""

    def cut(call: Call) -> dict[str, Any]:
        call.reached = {"rounds": 1}
        raise Cut

    few = runner(tmp_path, budget=60.0)
    few.end = time.monotonic() + 100.0
    steps = Part("real", "steps", 210.0, cut, keeps=True, first=90.0)
    assert few.run([part("whole", cut, 210.0), steps])[0].name == "steps"  # cut, so it is first in the next call
    assert few.results.stage("real")["steps"]["result"] == {"rounds": 1} and "whole" not in few.results.stage("real")
    assert runner(tmp_path, budget=200.0).too_long([steps, part("new", cut, 285.0)])[0].name == "new"


def test_a_budget_that_is_too_small_for_a_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--size", "tiny", "--out", str(tmp_path), "--scratch", str(tmp_path / "s"), "--commit", "c"]
    assert main([*flags, "--budget", "16", "--only", "steps/"]) == 1
    assert "steps/tiny takes about 60 s and can never start; give 90" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        (["--only", "zzz"], None, "--only zzz: in the name of no part; kernels/swiglu, suite/test_tables"),
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
