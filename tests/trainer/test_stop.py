"""A run that is asked to stop saves its step, says so, ends with 0, and goes on as if nothing had been."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from rmfast.errors import Interrupted
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.train import main
from rmfast.trainer import stop as module
from rmfast.trainer.stop import StopRequest, listening
from tests.runs import Case, arguments, final_weights, launch, read_lines, write_model, write_rows
from tests.tasks.ensembles import no_plots

TOTAL = 8


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_plots(monkeypatch)
    monkeypatch.setattr(module, "POLL", 0.0)


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
    run, before = folder / how, [signal.getsignal(number) for number in module.SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        ask_in_step(patch, step, run, how)
        assert main(command(folder, how)) == 0
    assert [signal.getsignal(number) for number in module.SIGNALS] == before
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"step {step} of {TOTAL} is saved" in said and (how if how != "file" else str(run / "stop")) in said
    assert (run / "requeue").is_file() and not (run / "stop").exists() and not (run / "model").exists()
    signals = [] if how == "file" else [f"signals: {how}"]  # a script that queues the run again goes by them
    assert (run / "requeue").read_text().splitlines()[1:] == signals
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


def test_the_file_is_looked_for_by_rank_0_alone_and_not_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL", 3600.0)
    (tmp_path / "stop").touch()
    monkeypatch.setenv("RANK", "1")
    other = StopRequest(tmp_path, World())
    assert not other.asked() and other.alone().asked()  # alone: nobody looks for it
    monkeypatch.setenv("RANK", "0")
    first = StopRequest(tmp_path, World())
    assert first.asked()
    (tmp_path / "stop").unlink()
    assert first.asked(), "not looked again within an hour"
