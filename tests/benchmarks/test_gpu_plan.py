"""The plan of benchmarks/gpu: short calls, needs that are said before time is spent, what is done again."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import check, plan, wheels
from benchmarks.gpu import runner as running
from benchmarks.gpu.__main__ import main, writable
from benchmarks.gpu.parts import Part, environment
from benchmarks.gpu.results import STAGES, Results, settled
from benchmarks.gpu.runner import calls_of
from benchmarks.gpu.stages import kernels, steps, suite
from benchmarks.steps import figures
from tests.benchmarks.test_gpu import ROOT, TESTED, Commands, commands, part, runner, settings  # noqa: F401


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine must have is tried by imports that cost nothing."""
    monkeypatch.setattr(check, "IMPORTS", dict.fromkeys(check.IMPORTS, ""))


CARD = {"cuda": True, "name": "card", "capability": 90, "memory_gib": 40.0}
NONE = {"cuda": False, "capability": 0, "memory_gib": 0.0}


def real_plan(folder: Path, **changes: Any) -> list[Part]:
    return plan.parts(settings(folder, tiny=False, device="cuda", **changes))


def test_the_plan_falls_into_calls_and_every_part_once(tmp_path: Path) -> None:
    parts = real_plan(tmp_path)
    labels = [p.label for p in parts]
    assert len(labels) == len(set(labels)) and {p.stage for p in parts} == set(STAGES)
    calls = calls_of(parts, 480.0)
    assert sorted(p.label for call in calls for p in call) == sorted(labels)
    assert {p.stage for call in calls[:4] for p in call} == set(STAGES)  # four calls touch every stage
    assert max(p.seconds for p in parts) <= 455
    with pytest.raises(ValueError, match="more than the budget"):
        calls_of(parts, 100.0)
    for file in (*suite.files(), *(f"tests/kernels/{test.partition('::')[0]}" for test in suite.ONE_OF_EACH.values())):
        assert (ROOT / file).is_file()
    for test in suite.ONE_OF_EACH.values():
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / "kernels" / file).read_text()


def test_one_call_of_400_seconds_has_attention_alone_then_a_test_of_each_op_then_the_claimed_steps(
    tmp_path: Path,
) -> None:
    parts = real_plan(tmp_path)
    first = [p.label for p in calls_of(parts, 400.0)[0]]
    ones = [f"suite/one test of {op}" for op in suite.ONE_OF_EACH]
    assert first[: len(ones) + 2] == ["suite/test_long_prefixes", *ones, "steps/llama-1b hh"]
    assert first[len(ones) + 2] == "kernels/prefix_attention hh"
    alone = parts[0]
    assert not alone.shared and all(p.shared for p in parts[1 : len(ones) + 1])
    assert steps.FOUR[::-1] == ("rmfast", "hf-packed", "trl-no-checkpointing", "trl")  # the order in which they run


def test_the_second_call_of_150_seconds_has_what_failed_then_tiles_of_attention_and_log_probability(
    tmp_path: Path,
) -> None:
    own = settings(tmp_path, tiny=False, device="cuda")

    def second() -> list[str]:
        parts = plan.parts(own)
        parts.sort(key=lambda p: not p.label.startswith("tiles/"))  # as --first tiles/ does
        call = runner(tmp_path, commit="b", budget=150.0)
        fitting = [p for p in call.unsettled(parts) if p not in call.too_long(parts)]
        return [p.label for p in calls_of(fitting, 150.0)[0]]

    assert second()[:2] == ["tiles/prefix_attention D=64", "tiles/linear_log_prob"]
    results = Results(own.out)
    broken = TESTED | {"failed": 1, "failures": [{"test": "x", "why": "y"}]}
    results.put("suite", "one test of swiglu", {"status": "done", "commit": "a", "result": broken})
    results.put("suite", "one test of gae", {"status": "done", "commit": "a", "result": TESTED})
    rounds = {mode: [{}] for mode in ("trl", "trl-no-checkpointing", "hf-packed")}
    failed = {"rounds": rounds, "failed": {"rmfast": "ended with code 1: CUDA error"}}
    results.put("steps", "llama-1b hh", {"status": "done", "commit": "a", "result": failed})
    (steps_part,) = (p for p in plan.parts(own) if p.label == "steps/llama-1b hh")
    assert steps_part.seconds == steps.PREPARE + steps.SECONDS["rmfast"]  # the other modes are there
    assert second()[:2] == ["suite/one test of swiglu", "steps/llama-1b hh"]
    results.put("steps", "llama-1b hh", {"status": "failed", "commit": "b"})  # nothing was mended since
    assert "steps/llama-1b hh" not in second()


def test_what_is_missing_is_said_before_time_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "probe", lambda: CARD)
    monkeypatch.setattr(check, "IMPORTS", dict.fromkeys(check.IMPORTS, "") | {"trl": "import no_such_trl"})
    monkeypatch.setattr(wheels, "CARRIED", {"torch": "torch", "no-such-package": "no_such"})
    monkeypatch.setattr(wheels, "PINS", {"no-such-package": "0.8.5"})
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"  trl +ModuleNotFoundError: No module named 'no_such_trl'\n", printed)
    assert re.search(r"  packages +ok\n", printed) and re.search(r"  training +ok\n", printed)
    assert "wheels to carry (--wheels FOLDER downloads them): no-such-package==0.8.5\n" in printed
    assert "card, sm_90, 40 GiB" in printed and "warning" in printed
    assert "call 1: suite/" in printed and "parts cannot run" not in printed  # only TRL's modes are left out
    monkeypatch.setattr(check, "probe", lambda: NONE)
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_what_failed_is_done_again_at_another_commit() -> None:
    bad = TESTED | {"failed": 1, "failures": [{"test": "x", "why": "y"}]}
    marked = {"results": [], "skipped": [], "tests": {"x": "FAILED test_x.py::test_y"}}
    slow = {"results": [], "skipped": [{"op": "x", "what": "s flex", "why": "OutOfMemoryError"}],
            "tests": {"x": "not run"}}  # fmt: skip
    for result, again in ((bad, True), (marked, True), (TESTED, False), (slow, False)):
        record = {"status": "done", "commit": "a", "result": result}
        assert settled(record, "a") and settled(record, "b") is not again
    failed = {"status": "failed", "commit": "a"}
    assert settled(failed, "a") and not settled(failed, "b")


@pytest.mark.usefixtures("quick")
def test_check_says_which_parts_a_budget_is_too_small_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "probe", lambda: NONE)
    assert main(["--check", "--budget", "200"]) == 1
    printed = capsys.readouterr().out
    assert "steps/llama-1b hh takes about 210 s and can never start; give 240" in printed
    assert "call 1: suite/" in printed


def test_the_commands_path_does_not_hide_a_package_named_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text("OTHER = 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path / "site")]))
    show = "import kernels, rmfast, tempfile; print(kernels.OTHER, rmfast.__file__, tempfile.gettempdir())"
    inside = environment(settings(tmp_path))
    done = subprocess.run([sys.executable, "-P", "-c", show], cwd=ROOT, env=inside, capture_output=True, text=True)
    other, where, temporary = done.stdout.split()
    assert other == "1" and Path(where).resolve().is_relative_to(ROOT / "rmfast")
    assert temporary == str(tmp_path / "scratch" / "tmp")
    monkeypatch.setattr(check, "IMPORTS", {"bad": "import kernels.hub", "good": "import kernels"})
    assert "No module named 'kernels.hub'" in str(check.imports("bad", settings(tmp_path)))
    assert check.imports("good", settings(tmp_path)) is None


def test_what_killed_calls_left_is_cleaned(tmp_path: Path) -> None:
    for name in (".suite.host-7.partial.json", "suite.json"):
        (tmp_path / name).touch()
    writable("--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["suite.json"]
    assert len(STAGES) + 1 + 1 < 8  # files: of each stage, the log, and one that is half written


def test_modes_whose_need_is_not_there_are_shown_and_done_when_it_is(tmp_path: Path) -> None:
    own = settings(tmp_path, lacking={"liger": "x"})
    assert steps.absent(steps.TUNED, own) == {"trl-liger": "liger"}
    without_trl = replace(own, lacking={"trl": "x"})
    assert steps.absent(steps.TUNED, without_trl) == {"trl-tuned": "trl", "trl-liger": "trl"}
    result = {"absent": {"trl-liger": "liger"}, "failed": {"hf-packed": "does not fit: CUDA out of memory"}}
    empty = {"limits": [{"matmul": 1e12}], "summary": {}, "largest_loss_difference": {}, "breakdown": {}}
    said = figures.lines(result | empty)
    assert "trl-liger: not installed or not working: liger" in said
    assert "hf-packed: does not fit: CUDA out of memory" in said
    record = {"status": "done", "commit": "a", "result": result}
    assert settled(record, "b", own.lacking)  # what does not fit is a result
    assert not settled(record, "a", frozenset())
    record["result"] = {"failed": {"trl": "code 1"}}
    assert settled(record, "a") and not settled(record, "b")


def test_steps_that_were_cut_keep_their_modes_and_go_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(tmp_path)
    begun: list[dict[str, Any]] = []
    ends: list[tuple[int | None, dict[str, Any]]] = [
        (None, {"complete": False, "rounds": {"rmfast": [{}]}}),
        (1, {"complete": True, "rounds": {"hf-packed": [{}]}, "failed": {"rmfast": "x"}}),
        (0, {"complete": True, "rounds": {"rmfast": [{}], "hf-packed": [{}]}}),
    ]

    def run(words: Any, *_: Any, **_more: Any) -> tuple[int | None, str]:
        out = Path(words[words.index("--json") + 1])
        begun.append(json.loads(out.read_text()) if out.is_file() else {})
        code, result = ends[len(begun) - 1]
        out.write_text(json.dumps(result))
        return code, ""

    monkeypatch.setattr(running, "run", run)
    (one,) = (p for p in plan.parts(own) if p.stage == "steps")
    results = Results(own.out)
    for commit in "abc":
        runner(tmp_path, commit=commit, budget=200.0).one(one)
        record = results.stage("steps")["tiny"]
        if commit == "a":
            assert record["status"] == "cut" and record["result"] == ends[0][1]
            (tmp_path / "scratch" / "steps" / "tiny.json").unlink()  # another machine
        if commit == "b":  # rmfast failed: what the others gave is kept, and it is done again once that is mended
            assert record["status"] == "done" and not settled(record, "c")
    assert begun[1] == ends[0][1] and begun[2] == ends[1][1] | {"complete": False}
    assert settled(results.stage("steps")["tiny"], "d")


def test_a_part_that_hangs_costs_three_times_its_guess_and_no_more(tmp_path: Path, commands: Commands) -> None:  # noqa: F811
    runner(tmp_path, budget=300.0).run([part("short", 10.0), part("middle", 40.0), part("long", 200.0)])
    # 5 s of the call are for the tables
    assert commands.given == [pytest.approx(seconds, abs=2.0) for seconds in (90.0, 120.0, 295.0)]


def test_figures_of_an_op_stand_beside_what_its_tests_say(tmp_path: Path) -> None:
    done = {"status": "done", "result": TESTED}
    bad = {"status": "done", "result": TESTED | {"failed": 1, "failures": [{"test": "t.py::x", "why": "y"}]}}
    cut = {"status": "cut"}
    records = {"one test of swiglu": done, "one test of gae": bad, "test_rms_norm": done, "test_rope": cut}
    assert suite.verdicts(records) == {
        "test_swiglu.py": "passed: test_values_and_gradient", "test_gae.py": "FAILED t.py::x",
        "test_rms_norm.py": "passed", "test_rope.py": "FAILED test_rope.py: cut",
    }  # fmt: skip
    assert suite.verdicts(records | {"test_swiglu": done})["test_swiglu.py"] == "passed"
    crashed = {"test_long_prefixes": bad, "one test of prefix_attention": done}
    assert suite.verdicts(crashed)["test_prefix_attention_kernel.py"] == "FAILED t.py::x"
    row = {
        "op": "gae",
        "size": "s",
        "pass": "forward",
        "contender": "rmfast",
        "milliseconds": 1.0,
        "bytes": 1,
        "flops": 0,
    }
    result = {"results": [row], "skipped": [], "tests": {"gae": "FAILED t.py::x"},
              "limits": {"bandwidth": 1e9, "matmul": 1e12, "dtype": "x"}}  # fmt: skip
    assert kernels.lines({"gae": {"status": "done", "result": result}})[1].endswith("(tests: FAILED t.py::x)")
    assert kernels.mark({"gae": "passed"}, "gae") == "" and kernels.mark({}, "gae") == "tests: not run"
