"""The plan of benchmarks/gpu: short calls, needs that are said before time is spent, what is done again."""

import json
import os
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import check, plan, wheels
from benchmarks.gpu.__main__ import clean, main
from benchmarks.gpu.parts import Call, Cut, Failed, Part
from benchmarks.gpu.results import MOST_TRIES, STAGES, Results, replaced, settled
from benchmarks.gpu.runner import calls_of
from benchmarks.gpu.stages import kernels, steps, suite
from tests.benchmarks.test_gpu import ROOT, TESTED, part, runner, settings


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
    assert len(labels) == len(set(labels)) and {p.stage for p in parts} == set(plan.STAGES)
    calls = calls_of(parts, 480.0)
    assert sorted(p.label for call in calls for p in call) == sorted(labels)
    assert {p.stage for call in calls[:4] for p in call} == set(plan.STAGES)  # four calls touch every stage
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
    results.record("suite", "one test of swiglu", status="done", commit="a", result=broken)
    results.record("suite", "one test of gae", status="done", commit="a", result=TESTED)
    rounds = {mode: [{}] for mode in ("trl", "trl-no-checkpointing", "hf-packed")}
    failed = {"rounds": rounds, "failed": {"rmfast": "ended with code 1: CUDA error"}}
    results.record("steps", "llama-1b hh", status="done", commit="a", result=failed)
    (steps_part,) = (p for p in plan.parts(own) if p.label == "steps/llama-1b hh")
    assert steps_part.seconds == steps.PREPARE + steps.SECONDS["rmfast"]  # the other modes are there
    assert second()[:2] == ["suite/one test of swiglu", "steps/llama-1b hh"]
    results.record("steps", "llama-1b hh", status="failed", commit="b")  # nothing was mended since
    assert "steps/llama-1b hh" not in second()


def test_what_is_missing_is_said_before_time_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(check, "probe", lambda: CARD)
    monkeypatch.setattr(check, "IMPORTS", dict.fromkeys(check.IMPORTS, "") | {"trl": "import no_such_trl"})
    monkeypatch.setattr(wheels, "CARRIED", ("torch", "no-such-package"))
    monkeypatch.setattr(wheels, "PINS", {"no-such-package": "0.8.5"})
    assert main(["--check", "--data", str(tmp_path / "data"), "--model", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"  trl +ModuleNotFoundError: No module named 'no_such_trl'\n", printed)
    assert re.search(r"  packages +ok\n", printed) and re.search(r"  training +ok\n", printed)
    assert "wheels to carry (--wheels FOLDER downloads them): no-such-package==0.8.5\n" in printed
    assert "card, sm_90, 40 GiB" in printed and "warning" in printed
    assert "harmless_base_test.jsonl.gz" in printed and "no Hugging Face folder" in printed
    assert re.search(r"parts cannot run: .*real/hh seed 0", printed) and "call 1: suite/" in printed
    assert not re.search(r"parts cannot run: .*steps/", printed)  # only TRL's modes are left out
    monkeypatch.setattr(check, "probe", lambda: NONE)
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_what_failed_is_done_again_at_another_commit(tmp_path: Path) -> None:
    bad = TESTED | {"failed": 1, "failures": [{"test": "x", "why": "y"}]}
    marked = {"results": [], "skipped": [], "tests": {"x": "FAILED test_x.py::test_y"}}
    slow = {"results": [], "skipped": [{"op": "x", "what": "s flex", "why": "OutOfMemoryError"}],
            "tests": {"x": "not run"}}  # fmt: skip
    for result, again in ((bad, True), (marked, True), (TESTED, False), (slow, False)):
        record = {"status": "done", "tries": 1, "commit": "a", "result": result}
        assert settled(record, "a") and settled(record, "b") is not again
    given_up = {"status": "failed", "tries": MOST_TRIES, "commit": "a"}
    assert settled(given_up, "a") and not settled(given_up, "b")
    own = Results(tmp_path)
    own.record("suite", "x", **given_up)
    own.record("suite", "x", status="failed", commit="b")
    assert own.stage("suite")["x"]["tries"] == 1  # three more at the new commit


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
    call = Call(settings(tmp_path), time.monotonic() + 60.0)
    show = "import kernels, rmfast, tempfile; print(kernels.OTHER, rmfast.__file__, tempfile.gettempdir())"
    other, where, temporary = call.run(sys.executable, "-P", "-c", show).split()
    assert other == "1" and Path(where).resolve().is_relative_to(ROOT / "rmfast")
    assert temporary == str(tmp_path / "scratch" / "tmp")
    monkeypatch.setattr(check, "IMPORTS", {"bad": "import kernels.hub", "good": "import kernels"})
    assert "No module named 'kernels.hub'" in str(check.imports("bad", settings(tmp_path)))
    assert check.imports("good", settings(tmp_path)) is None


def test_what_killed_calls_left_is_cleaned(tmp_path: Path) -> None:
    for name in ("kept.tar.gz.partial", "suite.json.partial", "suite.json"):
        (tmp_path / name).touch()
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["suite.json"]


def test_modes_whose_need_is_not_there_are_shown_and_done_when_it_is(tmp_path: Path) -> None:
    own = settings(tmp_path, lacking=frozenset({"liger"}))
    assert steps.absent(steps.TUNED, own) == {"trl-liger": "liger"}
    without_trl = replace(own, lacking=frozenset({"trl"}))
    assert steps.absent(steps.TUNED, without_trl) == {"trl-tuned": "trl", "trl-liger": "trl"}
    result = {"absent": {"trl-liger": "liger"}, "failed": {"hf-packed": "does not fit: CUDA out of memory"}}
    assert steps.without(result)["trl-liger"] == "not installed or not working: liger"
    record = {"status": "done", "tries": 1, "commit": "a", "result": result}
    assert settled(record, "b", own.lacking)  # what does not fit is a result
    assert not settled(record, "a", frozenset())
    record["result"] = {"failed": {"trl": "code 1"}}
    assert settled(record, "a") and not settled(record, "b")


def test_steps_that_were_cut_keep_their_modes_and_go_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(tmp_path)
    begun: list[dict[str, Any]] = []
    ends: list[tuple[dict[str, Any], type[Exception] | None]] = [
        ({"complete": False, "rounds": {"rmfast": [{}]}}, Cut),
        ({"complete": True, "rounds": {"hf-packed": [{}]}, "failed": {"rmfast": "x"}}, Failed),
        ({"complete": True, "rounds": {"rmfast": [{}], "hf-packed": [{}]}}, None),
    ]

    def python(call: Call, _program: str, *words: Any, **_more: str) -> str:
        out = Path(words[words.index("--json") + 1])
        begun.append(json.loads(out.read_text()) if out.is_file() else {})
        result, error = ends[len(begun) - 1]
        out.write_text(json.dumps(result))
        if error:
            raise error("code 1")
        return ""

    monkeypatch.setattr(Call, "python", python)
    calls = [runner(tmp_path, commit=commit, budget=200.0) for commit in "abc"]
    (one,) = (p for p in plan.parts(own) if p.stage == "steps")
    results = Results(own.out)
    for call in calls:
        call.one(one)
        if call is calls[0]:
            record = results.stage("steps")["tiny"]
            assert record["status"] == "cut" and record["result"] == ends[0][0]
            (tmp_path / "scratch" / "steps" / "tiny.json").unlink()  # another machine
        if call is calls[1]:  # rmfast failed: what the others gave is kept, and it is done again once that is mended
            record = results.stage("steps")["tiny"]
            assert record["status"] == "done" and not settled(record, "c")
    assert begun[1] == ends[0][0] and begun[2] == ends[1][0] | {"complete": False, "absent": {}}
    assert settled(results.stage("steps")["tiny"], "d")


def test_a_part_that_hangs_costs_three_times_its_guess_and_no_more(tmp_path: Path) -> None:
    given: list[float] = []

    def note(call: Call) -> dict[str, Any]:
        given.append(call.deadline - time.monotonic())
        return {}

    own = runner(tmp_path, budget=300.0)
    own.run([part("short", note, 10.0), part("middle", note, 40.0), part("long", note, 200.0)])
    assert given == [pytest.approx(seconds, abs=2.0) for seconds in (90.0, 120.0, 295.0)]  # 5 s are for the tables


def test_a_killed_call_leaves_one_file_half_written_at_most(tmp_path: Path) -> None:
    begun, over, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        begun.set()
        with replaced(tmp_path / "b") as partial:
            partial.touch()
            seen.append(over.is_set())

    thread = threading.Thread(target=other)
    with replaced(tmp_path / "a") as partial:
        partial.touch()
        thread.start()
        begun.wait()
        time.sleep(0.05)
        assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
        over.set()
    thread.join()
    assert seen == [True] and sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    # A file for each stage, the log and what experiments keep, and one that is half written.
    assert len(STAGES) + 2 + 1 == 8


def test_figures_of_an_op_stand_beside_what_its_tests_say(tmp_path: Path) -> None:
    done = {"status": "done", "result": TESTED}
    bad = {"status": "done", "result": TESTED | {"failed": 1, "failures": [{"test": "t.py::x", "why": "y"}]}}
    records = {"one test of swiglu": done, "one test of gae": bad, "test_norm": done, "test_rope": {"status": "cut"}}
    assert suite.verdicts(records) == {
        "test_swiglu.py": "passed: test_values_and_gradient", "test_gae.py": "FAILED t.py::x",
        "test_norm.py": "passed", "test_rope.py": "FAILED test_rope.py: cut",
    }  # fmt: skip
    assert suite.verdicts(records | {"test_swiglu": done})["test_swiglu.py"] == "passed"
    crashed = {"test_long_prefixes": bad, "one test of prefix_attention": done}
    assert suite.verdicts(crashed)["test_prefix_attention.py"] == "FAILED t.py::x"
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
