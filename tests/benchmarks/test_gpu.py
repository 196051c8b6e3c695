"""benchmarks/gpu at its tiny size on a CPU: every stage to a page of figures, cut off by force on the way."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import check
from benchmarks.gpu import runner as running
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import STAGES, Results, settled
from benchmarks.gpu.runner import Runner
from benchmarks.origin import commit, versions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def imports_that_cost_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine must have is tried by imports that take seconds."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(check, "IMPORTS", dict.fromkeys(check.IMPORTS, ""))


def settings(folder: Path, **changes: Any) -> Settings:
    base = {"out": folder / "out", "scratch": folder / "scratch", "tiny": True, "device": "cpu", "arch": 90}
    return Settings(**(base | changes))


def runner(folder: Path, *, budget: float = 60.0, commit: str = "c") -> Runner:
    own = settings(folder)
    origin = {"device": "tiny", "versions": {"torch": "0"}, "commit": commit, "size": "tiny"}
    return Runner(own, Results(own.out), origin, start=time.monotonic(), budget=budget)


def part(name: str, seconds: float = 1.0, stage: str = "tiles", **more: Any) -> Part:
    return Part(stage, name, seconds, (f"a.module.{name}",), **more)


class Commands:
    """In place of what parts run: how each command ends, by its last name, and what it writes."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[int | None, dict[str, Any] | None, str]] = {}
        self.ran: list[str] = []
        self.given: list[float] = []

    def run(self, words: Any, settings: Settings, *, seconds: float, pipe: int) -> tuple[int | None, str]:
        name = str(words[3]).rpartition(".")[2]
        self.ran.append(name)
        self.given.append(seconds)
        code, result, text = self.ends.get(name, (0, {"x": 1}, ""))
        if result is not None:
            Path(words[-1]).write_text(json.dumps(result))
        return code, text


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(running, "run", found.run)
    return found


@pytest.mark.slow
def test_all_stages_killed_on_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    flags = ["--size", "tiny", "--out", str(out), "--scratch", str(scratch), "--budget", "900"]
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
    monkeypatch.setattr(check, "IMPORTS", dict.fromkeys(check.IMPORTS, ""))  # which the first call has tried
    before = Results(out).stage("suite")
    assert list(before) == ["test_tables"] and before["test_tables"]["status"] == "done"

    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "suite/test_tables ..." not in printed and "suite/test_common: done" in printed
    assert Results(out).stage("suite")["test_tables"] == before["test_tables"]
    assert "0 parts left" in printed.splitlines()[-1]
    for stage in STAGES:
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
    assert sum(path.is_file() for path in out.iterdir()) <= 7  # with one that a killed call left half written: eight

    assert main(flags) == 0 and " ..." not in capsys.readouterr().out  # nothing is left

    monkeypatch.setattr(figures, "PAGES", ())
    monkeypatch.setattr(figures, "PLOTS", tmp_path / "plots")
    assert figures.main(["--gpu", str(out)]) == 0
    page = (out / "README.md").read_text()
    for word in (" swiglu ", "sinkhorn columns", " hf-packed ", " passed, 0 failed"):
        assert word in page
    for name in re.findall(r"!\[\w+\]\((\S+)\)", page):
        assert (out / name).stat().st_size > 10_000
    assert page.count("](plots/") == 3


def test_a_part_that_is_cut_off_is_the_next_calls_first_and_given_up_at_last(
    tmp_path: Path, commands: Commands
) -> None:
    commands.ends = {"slow": (None, None, ""), "keeps": (None, {"rounds": 1}, "")}
    slow, keeps = part("slow", 30.0), part("keeps", 30.0, keeps=True)
    own = runner(tmp_path)
    own.end = time.monotonic() + 40.0  # of the call, not of the part, whose patience is 90 s
    assert [p.name for p in own.run([part("done"), slow, keeps])] == ["slow", "keeps"]
    record = own.results.stage("tiles")["slow"]
    assert record["status"] == "cut" and own.results.stage("tiles")["keeps"]["result"] == {"rounds": 1}
    few = runner(tmp_path)
    few.end = time.monotonic() + 20.0
    assert few.run([slow]) == [slow] and commands.ran.count("slow") == 1  # it waits for more time
    again = runner(tmp_path)
    again.end = time.monotonic() + 40.0
    assert again.unsettled([part("new"), slow])[0] == slow
    assert [p.name for p in again.run([part("new"), slow, keeps])] == ["keeps"]  # it goes on where it was cut
    record = own.results.stage("tiles")["slow"]
    assert record["status"] == "failed" and settled(record, "c") and not settled(record, "another")


def test_a_part_that_keeps_what_it_has_starts_where_its_first_result_fits(tmp_path: Path, commands: Commands) -> None:
    """What comes before it may take longer than guessed; the rest of it is another call's."""
    commands.ends["steps"] = (None, {"rounds": 1}, "")
    few = runner(tmp_path, budget=60.0)
    few.end = time.monotonic() + 100.0
    steps = part("steps", 210.0, keeps=True, first=90.0)
    assert few.run([part("whole", 210.0), steps])[0].name == "steps"  # cut, so it is first in the next call
    assert few.results.stage("tiles")["steps"]["result"] == {"rounds": 1} and "whole" not in few.results.stage("tiles")
    assert runner(tmp_path, budget=200.0).too_long([steps, part("new", 285.0)])[0].name == "new"


def test_a_budget_that_is_too_small_for_a_part_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--size", "tiny", "--out", str(tmp_path), "--scratch", str(tmp_path / "s"), "--commit", "c"]
    assert main([*flags, "--budget", "16", "--only", "steps/"]) == 1
    assert "steps/tiny takes about 60 s and can never start; give 90" in capsys.readouterr().err


def test_failures_are_kept_with_their_words_and_the_others_go_on(tmp_path: Path, commands: Commands) -> None:
    commands.ends = {"breaks": (1, None, "the disk is full"), "hangs": (None, None, ""), "silent": (0, None, "")}
    own = runner(tmp_path, budget=600.0)
    parts = [part("breaks"), part("hangs"), part("silent"), part("good", adds={"absent": {}})]
    assert not own.run(parts) and not own.run(parts) and len(commands.ran) == 4
    records = own.results.stage("tiles")
    assert records["good"] == records["good"] | {"status": "done", "result": {"x": 1, "absent": {}}, "commit": "c"}
    assert "a.module.breaks ended with code 1:\nthe disk is full" in records["breaks"]["error"]
    assert "did not end within 90 s" in records["hangs"]["error"] and records["silent"]["status"] == "failed"
    assert "the disk is full" in (tmp_path / "out" / "log.txt").read_text()
    own.stop()  # from outside, as SIGTERM does: nothing is started any more
    assert own.run([part("late")])[0].name == "late" and "late" not in own.results.stage("tiles")
    own.results.put("tiles", "breaks", None)
    assert "breaks" not in own.results.stage("tiles")


def test_parts_start_only_where_they_fit_in_their_order(tmp_path: Path, commands: Commands) -> None:
    parts = [part("long", 100.0), part("a", 5.0), part("b", 5.0, shared=True), part("c", 5.0, shared=True)]
    assert [p.name for p in runner(tmp_path, budget=66.0).run(parts)] == ["long"]
    assert commands.ran[0] == "a" and sorted(commands.ran) == ["a", "b", "c"]
    assert [p.name for p in runner(tmp_path, budget=66.0).run(parts)] == ["long"] and len(commands.ran) == 3
    assert not runner(tmp_path, budget=166.0).run(parts) and commands.ran[-1] == "long"


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
    origin = {
        "device": "tiny",
        "commit": "new",
        "size": "tiny",
        "versions": {"python": platform.python_version()} | versions() | {"absent": "1"},
    }
    results = Results(tmp_path)
    flags = ["--size", "tiny", "--out", str(tmp_path), "--scratch", str(tmp_path / "s"), "--commit", "new"]
    flags += ["--only", "test_tables"]
    for change, code in ((changes, 1), ({}, 0)):
        results.put("suite", "test_tables", {"status": "done", "result": TESTED} | origin | change)
        assert main(flags) == code
        assert (f"suite/test_tables {said}" in capsys.readouterr().err) == bool(code)
    results.put("suite", "test_tables", {"status": "done", "result": TESTED} | origin | changes)
    assert main([*flags, "--mix"]) == 0


TESTED: dict[str, Any] = {"passed": 1, "failed": 0, "skipped": 0, "failures": []}


def test_a_tree_without_git_must_name_its_commit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    inside = tmp_path / "tree"
    inside.mkdir()
    assert commit(inside) is None
    monkeypatch.setattr(program, "commit", lambda: None)
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
