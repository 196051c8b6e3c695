"""A run saves beside its steps, ends only when the last save fails, and goes on from the newest whole checkpoint."""

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from rmfast.checkpoint import saver, store
from rmfast.checkpoint.store import list_checkpoints
from rmfast.errors import Interrupted, RunError, UserError
from rmfast.outputs.lock import FolderLock
from rmfast.outputs.marks import LOCK
from rmfast.parallel.engine import ReadRows, Shard
from rmfast.parallel.world import World
from rmfast.trainer.learner import Evaluation, Figures, Line
from rmfast.trainer.loop import fit
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest
from tests.checkpoint.saving import edit_manifest
from tests.runs import fork_ranks, read_lines
from tests.trainer.runs import run_in


class Chaos:
    """A learner of one number, which a step squares: any lost or repeated step shows. Ranks hold a row each."""

    total = 9

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.x = torch.full((1,), 0.3 + self.world.rank / 10, dtype=torch.float64)
        self.counters = {"seen": 0}

    def step(self, number: int) -> Figures:
        self.x.copy_(1 - 1.9 * self.x.square())
        self.counters["seen"] += 7
        return Figures(device={"x": self.x.clone()}, line=lambda values: Line(values))

    def evaluate(self, step: int, final: bool) -> list[Evaluation]:
        return []

    def state(self) -> dict[str, Shard]:
        return {"model/x": Shard(self.x, self.world.rank, (self.world.size,))}

    def load_state(self, read: ReadRows) -> None:
        self.x.copy_(read("model/x", self.world.rank, self.world.rank + 1))


def train(folder: Path, *, stop: StopRequest | None = None, **options: Any) -> tuple[Run, Chaos]:
    """Train to the end, or from where the folder's checkpoints are."""
    run, learner = run_in(folder, **({"checkpoint_every": 2} | options)), Chaos()
    run.resume(learner)
    fit(run, learner, stop)
    return run, learner


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    return train(tmp_path_factory.mktemp("whole") / "run")[1]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.trainer.run.LAST_PAUSES", (0.0, 0.0))


def full_disk(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """No space for the checkpoints of some steps."""
    write = store.write_part

    def written(folder: Path, *rest: Any) -> Any:
        if folder.name in [f".step-{step}.partial" for step in steps]:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "rank-00000.safetensors"))
        return write(folder, *rest)

    patch.setattr("rmfast.checkpoint.saver.write_part", written)


def steps_in(folder: Path) -> list[int]:
    return [store.step_of(path) for path in list_checkpoints(folder / "checkpoints")]


def test_a_damaged_newest_checkpoint_costs_the_steps_behind_it(
    tmp_path: Path, whole: Chaos, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path)
    newest = tmp_path / "checkpoints" / "step-9"
    for path, changed in ((newest, {"progress": {"step": 9, "seen": 0}}), (newest.with_name("step-8"), {"ranks": 2})):
        edit_manifest(path, **changed)
    capsys.readouterr()
    run, learner = train(tmp_path)
    assert torch.equal(learner.x, whole.x) and learner.counters == whole.counters == {"seen": 63}
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines if ": damaged: " in line] == [
        str(newest),
        f"{newest.parent}/step-8",
    ]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 10))
    assert sum("what had this name is removed" in line for line in lines) == 2
    assert steps_in(tmp_path) == [2, 4, 6, 8, 9] and run.saver.safe == 9


def test_a_run_without_a_whole_checkpoint_does_not_begin_again(tmp_path: Path) -> None:
    train(tmp_path)
    for path in list_checkpoints(tmp_path / "checkpoints"):
        (path / "rank-00000.safetensors").write_bytes(b"")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="none of 5 checkpoints is whole"):
        train(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_checkpoints_that_find_no_space_are_left_out_and_training_goes_on(
    tmp_path: Path, whole: Chaos, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_disk(monkeypatch, 4, 6)
    _, learner = train(tmp_path)
    assert torch.equal(learner.x, whole.x)
    assert steps_in(tmp_path) == [2, 8, 9]
    lines = [line for line in capsys.readouterr().out.splitlines() if "could not be saved" in line]
    part = "rank-00000.safetensors: No space left on device"
    again = "step 2 is safe; the run goes on, and another try follows"
    assert lines == [
        f"step {step} could not be saved: {tmp_path}/checkpoints/.step-{step}.partial/{part}; {again}"
        for step in (4, 6)
    ]


def test_a_last_checkpoint_that_finds_no_space_ends_the_run_with_a_line(
    tmp_path: Path, whole: Chaos, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as caught:
        full_disk(patch, 8, 9)
        train(tmp_path)
    message = str(caught.value)
    assert message.startswith("step 9 could not be saved: ") and "No space left on device; step 6 is safe" in message
    assert "\n" not in message and "step 9" not in capsys.readouterr().out.replace("step 9/9", "")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-2", "step-4", "step-6"]
    assert torch.equal(train(tmp_path)[1].x, whole.x)


def test_a_disk_that_stays_full_ends_the_run_at_the_fourth_checkpoint(
    tmp_path: Path, whole: Chaos, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as caught:
        full_disk(patch, *range(3, 10))
        train(tmp_path, checkpoint_every=1)
    assert "step 6/9" in capsys.readouterr().out  # 3, 4 and 5 failed beside the steps
    message = str(caught.value)
    assert message.startswith("step 6 could not be saved: ") and "No space left on device; step 2 is safe; " in message
    assert steps_in(tmp_path) == [1, 2]
    assert torch.equal(train(tmp_path)[1].x, whole.x)


def test_where_there_is_room_again_at_the_fourth_the_run_goes_on(tmp_path: Path, whole: Chaos) -> None:
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, 1, 2, 3, 5, 6, 7)
        assert torch.equal(train(tmp_path, checkpoint_every=1)[1].x, whole.x)
    assert steps_in(tmp_path) == [4, 8, 9]


def test_one_rank_that_has_lost_the_folder_leaves_no_rank_waiting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with World() as world:
            run, learner = run_in(tmp_path, world), Chaos(world)
            held = FolderLock(tmp_path) if world.main else None
            if world.main:
                (tmp_path / LOCK).unlink()
            world.barrier()
            with pytest.raises(RunError, match="was moved or removed" if world.main else "another rank"):
                run.save(learner)
            assert held is None or held.lost()

    assert fork_ranks(2, work) == [0, 0], capfd.readouterr().err


def test_the_last_checkpoint_is_tried_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, tries = store.write_part, []

    def written(folder: Path, *rest: Any) -> Any:
        tries.append(folder.name)
        if len(tries) < 3:
            raise OSError(errno.EIO, "Input/output error")
        return write(folder, *rest)

    monkeypatch.setattr("rmfast.checkpoint.saver.write_part", written)
    train(tmp_path, checkpoint_every=None)
    assert tries == [".step-9.partial"] * 3 and steps_in(tmp_path) == [9]


def test_a_run_that_is_asked_to_stop_waits_for_its_checkpoint(
    tmp_path: Path, whole: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmfast.signals.heard", ["SIGTERM"])
    with pytest.raises(Interrupted, match="step 1 of 9 is saved"):
        train(tmp_path, stop=StopRequest(tmp_path, World()))
    assert steps_in(tmp_path) == [1]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError, match="step 2 could not be saved.*step 1 is"):
        full_disk(patch, 2)
        train(tmp_path, stop=StopRequest(tmp_path, World()))
    monkeypatch.setattr("rmfast.signals.heard", [])
    assert torch.equal(train(tmp_path)[1].x, whole.x)


def test_the_log_is_on_the_disk_before_the_checkpoint_that_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    flush, publish = os.fsync, store.publish_checkpoint

    def flushed(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if name == "metrics.jsonl":
            events.append(f"log to {read_lines(tmp_path / name)[-1]['step']}")
        flush(handle)

    def published(folder: Path, step: int, **more: Any) -> Any:
        events.append(f"checkpoint of {step}")
        return publish(folder, step, **more)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr("rmfast.checkpoint.saver.publish_checkpoint", published)
    train(tmp_path, checkpoint_every=None)
    assert events == ["log to 9", "checkpoint of 9"]


def test_what_a_steps_error_ends_is_saved_up_to_there(tmp_path: Path, whole: Chaos) -> None:
    """The save of step 4 is on its way when step 5 fails."""

    class Failing(Chaos):
        def step(self, number: int) -> Figures:
            if number == 4:
                raise RunError("step 5: nothing works")
            return super().step(number)

    run = run_in(tmp_path, checkpoint_every=4)
    with pytest.raises(RunError, match="nothing works"):
        fit(run, Failing())
    assert steps_in(tmp_path) == [4]
    assert torch.equal(train(tmp_path)[1].x, whole.x)


def test_a_step_that_is_stopped_before_it_learns_leaves_the_checkpoint_before_it(
    tmp_path: Path, whole: Chaos, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Chaos):
        def step(self, number: int) -> Figures:
            if number == 4:
                raise Interrupted("stopped while it samples")
            return super().step(number)

    saves, save = list[int](), saver.Saver.save

    def counted(made: saver.Saver, step: int, *rest: Any) -> None:
        saves.append(step)
        save(made, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(saver.Saver, "save", counted)
        with pytest.raises(Interrupted):
            fit(run_in(tmp_path, checkpoint_every=2), Stopped())
        assert saves == steps_in(tmp_path) == [2, 4]
    with monkeypatch.context() as patch:  # where it could not be written, it is tried again
        patch.setattr(saver.Saver, "save", counted)
        full_disk(patch, 4)
        with pytest.raises(RunError, match=r"step 4 could not be saved: .*step 2 is safe"):
            fit(run_in(tmp_path / "full", checkpoint_every=2), Stopped())
        assert saves == [2, 4, 2, 4, 4, 4]
    assert torch.equal(train(tmp_path)[1].x, whole.x)


@pytest.mark.parametrize("where", ["write_part", "publish_checkpoint"])
def test_a_kill_while_a_checkpoint_is_on_its_way_leaves_the_one_before(
    tmp_path: Path, whole: Chaos, where: str
) -> None:
    """Steps go on while the thread is held in the save of step 4; step 6 kills."""

    class Killing(Chaos):
        def step(self, number: int) -> Figures:
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(number)

    function = getattr(saver, where)

    def held(folder: Path, *arguments: Any, **named: Any) -> Any:
        if (4 in arguments) if where == "publish_checkpoint" else folder.name == ".step-4.partial":
            time.sleep(60)
        return function(folder, *arguments, **named)

    def work() -> None:
        setattr(saver, where, held)
        fit(run_in(tmp_path, checkpoint_every=2), Killing())

    assert fork_ranks(1, work) == [-signal.SIGKILL]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".step-4.partial", "step-2"]
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert torch.equal(train(tmp_path)[1].x, whole.x)
    assert steps_in(tmp_path) == [2, 4, 6, 8, 9] and len(os.listdir(tmp_path / "checkpoints")) == 5
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_two_ranks_go_on_together_from_the_newest_that_is_whole_for_both(tmp_path: Path) -> None:
    def work() -> None:
        with World() as world:
            learner = Chaos(world)
            fit(run_in(tmp_path / "run", world=world, checkpoint_every=2), learner)
            if not world.main:
                (tmp_path / "run" / "checkpoints" / "step-9" / "rank-00001.safetensors").write_bytes(b"")
            world.barrier()
            run, again = run_in(tmp_path / "run", world=world, checkpoint_every=2), Chaos(world)
            run.resume(again)
            assert run.step == 8 and not torch.equal(again.x, learner.x)
            fit(run, again)
            assert torch.equal(again.x, learner.x)
            (tmp_path / f"{world.rank}").write_text(json.dumps(steps_in(tmp_path / "run")))

    assert fork_ranks(2, work) == [0, 0]
    assert [json.loads((tmp_path / f"{rank}").read_text()) for rank in (0, 1)] == [[2, 4, 6, 8, 9]] * 2
