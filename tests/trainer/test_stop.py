"""A run that is asked to stop saves its step, says so, ends with 0, and goes on as if nothing had been."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rmfast import signals
from rmfast.checkpoint import export
from rmfast.data import store
from rmfast.errors import Interrupted
from rmfast.evaluation.scoring import score
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.train import main
from rmfast.trainer.stop import StopRequest, listening
from tests.runs import Case, arguments, final_weights, launch, read_lines, write_model, write_rows
from tests.tasks.ensembles import no_plots

TOTAL = 8


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    no_plots(monkeypatch)
    monkeypatch.setattr(signals, "POLL", 0.0)
    monkeypatch.setattr(score, "CHUNK", 2)  # three in an evaluation
    before = {number: signal.getsignal(number) for number in signals.ASKS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where both are ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop")
    write_model(folder / "model")
    write_rows(folder / "rows.jsonl", 20)
    write_rows(folder / "eval.jsonl", 6, seed=1)
    return folder


def command(folder: Path, run: str, **more: object) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "model__dropout": 0.1,
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "data__tokens_per_pack": 64,
        "eval__every": 2,
        "run__dir": folder / run,
        "run__max_steps": TOTAL,
        "run__tensorboard": False,
        "optim__lr": 1e-2,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | more))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        no_plots(patch)
        patch.setattr(score, "CHUNK", 2)
        assert main(command(folder, "whole")) == 0
    return folder / "whole"


def ask_in_step(patch: pytest.MonkeyPatch, number: int, run: Path, how: str) -> None:
    """As a scheduler or a person would, while that step is at work."""
    step, left = NativeEngine.optimizer_step, number

    def stepped(self: NativeEngine, lr: float) -> torch.Tensor:
        nonlocal left
        left -= 1
        if not left:
            if how == "file":
                (run / "stop").touch()
            else:
                os.kill(os.getpid(), getattr(signal, how))
        return step(self, lr)

    patch.setattr(NativeEngine, "optimizer_step", stepped)


def assert_same(run: Path, whole: Path) -> None:
    """Weights, and every figure of every step and evaluation but the clock's."""
    ours, theirs = final_weights(run), final_weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()
    for file in ("metrics.jsonl", "eval.jsonl"):
        pairs = list(zip(read_lines(run / file), read_lines(whole / file), strict=True))
        for line, other in pairs:
            assert line["step"] == other["step"]
            shared = {"loss", "grad_norm", "num_tokens", "eval_loss", "eval_accuracy"} & line.keys()
            assert shared and all(line[name] == other[name] for name in shared)
    assert not (run / "stop").exists() and not (run / "requeue").exists()


@pytest.mark.parametrize(("how", "step"), [("SIGUSR1", 3), ("SIGTERM", 4), ("file", 7)])
def test_asked_to_stop_a_run_saves_its_step_and_goes_on_later(
    folder: Path, whole: Path, how: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 4 is also due for an evaluation, which the resumed run owes."""
    run, before = folder / how, [signal.getsignal(number) for number in signals.ASKS]
    with pytest.MonkeyPatch.context() as patch:
        ask_in_step(patch, step, run, how)
        assert main(command(folder, how)) == 0
    assert [signal.getsignal(number) for number in signals.ASKS] == before
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"step {step} of {TOTAL} is saved" in said and (how if how != "file" else str(run / "stop")) in said
    assert (run / "requeue").is_file() and not (run / "stop").exists() and not (run / "model").exists()
    named = [] if how == "file" else [f"signals: {how}"]  # a script that queues the run again goes by them
    assert (run / "requeue").read_text().splitlines()[1:] == named
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step-{step}"]
    assert main(command(folder, how)) == 0
    assert_same(run, whole)


def test_asked_in_the_last_step_the_evaluation_comes_later(folder: Path, whole: Path) -> None:
    run = folder / "last"
    with pytest.MonkeyPatch.context() as patch:
        ask_in_step(patch, TOTAL, run, "SIGUSR1")
        assert main(command(folder, "last")) == 0
    assert (run / "requeue").is_file() and not (run / "model").exists()
    assert main(command(folder, "last")) == 0
    assert_same(run, whole)


# What is asked, and what it comes into: where it is, which call, what is said to be saved, where the run goes on.
PHASES = {
    "tokenising": ("file", store, "encode_chunk", 1, "is not tokenised yet", None),
    "loading": ("SIGHUP", NativeEngine, "__init__", 1, "nothing was trained yet", None),
    "first evaluation": ("SIGHUP", NativeEngine, "score", 1, "an evaluation was cut off", None),
    "evaluation": ("file", NativeEngine, "score", 7, "an evaluation was cut off", 4),
    "last evaluation": ("SIGHUP", NativeEngine, "score", 13, "an evaluation was cut off", TOTAL),
    "export": ("file", export, "write_model", 1, "the model is not exported yet", TOTAL),
}


@pytest.mark.parametrize("phase", PHASES)
def test_asked_in_any_phase_the_run_ends_whole(
    folder: Path, whole: Path, phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    how, holder, name, left, saved, step = PHASES[phase]
    run, function = folder / phase, getattr(holder, name)

    def struck(*args: object, **values: object) -> object:
        nonlocal left
        left -= 1
        if not left and how == "file":
            (run / "stop").touch()
        elif not left:
            os.kill(os.getpid(), signal.SIGHUP)
        return function(*args, **values)

    cache = {"data__cache": folder / "another cache"} if phase == "tokenising" else {}
    keys = command(folder, phase, data__pairs_per_step=8, **cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, struck)
        assert main(keys) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    asked = run / "stop" if how == "file" else how
    assert said.startswith(f"rmfast: stopped by {asked}: ") and saved in said, said
    named = [] if how == "file" else ["signals: SIGHUP"]
    assert (run / "requeue").read_text().splitlines()[1:] == named and not (run / "model").exists()
    assert main(keys) == 0
    assert (f"resumed from step {step} in" if step else "the reward head is new") in capsys.readouterr().out
    assert_same(run, whole)


def test_the_second_sigint_ends_the_process_and_what_is_ignored_stays_so() -> None:
    code = """
import os, signal
from rmfast import signals
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with signals.noted():
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGINT)
    print(signals.heard, flush=True)
    os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "['SIGINT']\n")
    assert "a second one ends it at once" in done.stderr


def test_sigint_without_a_console_is_noted_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(file: int, data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(signals.os, "write", closed)
    with signals.noted():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.heard == ["SIGINT"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["ddp", "fsdp"])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(folder: Path, data: str) -> None:
    run = command(folder, data, parallel__data=data, data__tokens_per_pack=48)
    cases = [Case("stopped", run, "signal:3"), Case("resumed", run)]
    cases.append(Case("whole", command(folder, f"{data}-whole", parallel__data=data, data__tokens_per_pack=48)))
    codes = launch(folder / f"launch-{data}", cases, ranks=2)
    assert codes == {"stopped": [0, 0], "resumed": [0, 0], "whole": [0, 0]}
    log = (folder / f"launch-{data}" / "stopped-0.log").read_text()
    # What was heard in step 3 is agreed on in step 4.
    assert f"a signal to another rank: step 4 of {TOTAL} is saved" in log, log
    assert "resumed from step 4" in (folder / f"launch-{data}" / "resumed-0.log").read_text()
    assert_same(folder / data, folder / f"{data}-whole")


def _sleep_within(folder: str) -> None:
    time.sleep(60)


def test_forked_helpers_still_die_of_sigterm(tmp_path: Path) -> None:
    with listening(tmp_path, World()) as stop:
        helper = multiprocessing.get_context("fork").Process(target=_sleep_within, args=("",))
        helper.start()
        time.sleep(0.2)
        helper.terminate()
        helper.join(20)
        assert helper.exitcode == -signal.SIGTERM
        assert not stop.asked()


def test_marks_are_left_and_taken_away(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), listening(tmp_path, World()) as stop:
        (tmp_path / "stop").touch()
        assert stop.asked()
        raise stop.interrupted("all")
    assert (tmp_path / "requeue").read_text().startswith(f"stopped by {tmp_path / 'stop'}: all is saved")
    assert not (tmp_path / "stop").exists()
    (tmp_path / "stop").touch()
    with listening(tmp_path, World()):
        pass
    assert not any(tmp_path.iterdir())
    (tmp_path / "stop").touch()
    with pytest.raises(ValueError), listening(tmp_path, World()):
        raise ValueError
    assert (tmp_path / "stop").exists(), "an error obeys no request"


def test_work_of_one_process_ends_where_the_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stop").touch()
    signals.check("nothing")  # outside a run no file asks
    with signals.looking_for(tmp_path / "stop"):
        assert not signals.asked(look=False) and signals.asked() and signals.asked(look=False)
        (tmp_path / "stop").unlink()
        with pytest.raises(Interrupted, match=f"stopped by {tmp_path / 'stop'}: all is saved; the same command"):
            signals.check("all is saved")
    assert not signals.asked()


def test_the_file_is_looked_for_by_rank_0_alone_and_not_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "POLL", 3600.0)
    (tmp_path / "stop").touch()
    monkeypatch.setenv("RANK", "1")
    other = StopRequest(tmp_path, World())
    assert not other.asked() and other.alone().asked()  # alone: nobody looks for it
    monkeypatch.setenv("RANK", "0")
    first = StopRequest(tmp_path, World())
    assert first.asked()
    (tmp_path / "stop").unlink()
    assert first.asked(), "not looked again within an hour"
