"""Saving beside the steps: the copy is exact while training goes on, one save is on its way at most, and what cannot
be written is said, removed and tried again."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rmfast.checkpoint import saver as module
from rmfast.checkpoint import store
from rmfast.checkpoint.store import list_checkpoints, open_checkpoint
from rmfast.checkpoint.whole import damage, newest_whole
from rmfast.data import files
from rmfast.errors import PeerError
from rmfast.parallel.engine import Shard
from rmfast.parallel.world import World
from tests.checkpoint.saving import save_steps, saver, state_of, write_extras
from tests.runs import fork_ranks


class Gate:
    """Holds a function's calls until it opens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> None:
        self.opened, self.reached, self.calls = threading.Event(), threading.Event(), 0
        function = getattr(holder, name)

        def held(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            self.reached.set()
            assert self.opened.wait(20)
            return function(*arguments, **named)

        monkeypatch.setattr(holder, name, held)


def failing(monkeypatch: pytest.MonkeyPatch, where: str) -> Callable[[bool], None]:
    """Let the disk be full where something is written, or free again."""
    full = [True]
    holder, name = {"shard": (store, "write_tensors"), "manifest": (store, "write_json")}.get(where, (files, where))
    function = getattr(holder, name)

    def written(path: Path, *rest: Any) -> Any:
        if full[0] and (where != "manifest" or path.name == store.MANIFEST):
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(path, *rest)

    monkeypatch.setattr(holder, name, written)

    def now(is_full: bool) -> None:
        full[0] = is_full

    return now


def rows(path: Path) -> torch.Tensor:
    with open_checkpoint(path) as (read, _):
        return read("model/w", 0, 8)


def test_the_copy_is_of_the_step_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch, module, "write_part"), saver(tmp_path)
    weights, progress = torch.arange(12.0).reshape(4, 3), {"step": 1}
    state = {"model/w": Shard(weights, 0, (4, 3)), "model/t": Shard(weights.T[:2], 0, (2, 4))}
    made.save(1, state, progress)
    before = weights.clone()
    weights.fill_(-1.0)  # as the next step does, while the thread has written nothing
    progress["step"] = 2
    gate.opened.set()
    assert made.wait() == ""
    with open_checkpoint(tmp_path / "step-1") as (read, _):
        assert torch.equal(read("model/w", 0, 4), before) and torch.equal(read("model/t", 0, 2), before.T[:2])
    assert store.read_manifest(tmp_path / "step-1")["progress"] == {"step": 1}


def test_a_step_waits_for_no_write_and_the_next_save_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, made = Gate(monkeypatch, module, "write_part"), saver(tmp_path)
    made.save(1, state_of(1), {})  # returns, though nothing is written
    assert gate.reached.wait(20) and not list_checkpoints(tmp_path)
    second = threading.Thread(target=lambda: made.save(2, state_of(2), {}))
    second.start()
    time.sleep(0.05)
    assert second.is_alive() and gate.calls == 1
    gate.opened.set()
    second.join(20)
    assert [path.name for path in list_checkpoints(tmp_path)][0] == "step-1"
    assert made.wait() == "" and torch.equal(rows(tmp_path / "step-2"), state_of(2)["model/w"].tensor)


def test_a_checkpoint_is_whole_before_anything_waits_for_it(tmp_path: Path) -> None:
    made = saver(tmp_path)
    made.save(1, state_of(1), {})
    for _ in range(400):
        if list_checkpoints(tmp_path):
            break
        time.sleep(0.05)
    assert damage(tmp_path / "step-1") == ""
    assert made.wait() == ""


def test_the_extras_are_made_once_and_are_in_every_checkpoint(tmp_path: Path) -> None:
    calls: list[Path] = []

    def extras(folder: Path) -> None:
        calls.append(folder)
        write_extras(folder)

    save_steps(tmp_path, 1, 2, extras=extras)
    assert len(calls) == 1 and not calls[0].exists()
    for step in (1, 2):
        assert (tmp_path / f"step-{step}" / "templates" / "chat.jinja").read_text() == "{{ messages }}\n"


def test_what_must_be_on_the_disk_before_a_checkpoint_is(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    made = saver(tmp_path, before=lambda: seen.append(sorted(path.name for path in tmp_path.iterdir())))
    made.save(4, state_of(4), {})
    made.wait()
    assert seen == [[".step-4.partial"]]


@pytest.mark.parametrize("where", ["shard", "manifest", "publish", "sync"])
def test_a_full_disk_costs_one_checkpoint_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    made = save_steps(tmp_path, 1)
    full = failing(monkeypatch, where)
    made.save(2, state_of(2), {})
    for step in (3, 4):
        made.save(step, state_of(step), {})
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"step {step - 1} could not be saved: ") and "No space left on device" in lines[0]
        assert lines[0].endswith("step 1 is safe; the run goes on, and another try follows")
        assert str(tmp_path) in lines[0]
    line = made.wait()
    assert line.startswith("step 4 could not be saved: ") and line.endswith("; step 1 is safe")
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]  # nothing partial stays
    full(False)
    made.save(5, state_of(5), {})
    assert made.wait() == "" and made.safe == 5
    assert newest_whole(tmp_path, World()).path == tmp_path / "step-5"


def test_a_failure_is_said_as_soon_as_it_is_known_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = saver(tmp_path)
    failing(monkeypatch, "shard")
    made.save(1, state_of(1), {})
    for _ in range(400):
        made.report()  # as after every step
        if out := capsys.readouterr().out:
            break
        time.sleep(0.05)
    assert out.count("step 1 could not be saved") == 1 and "no step is safe yet" in out
    made.report()
    made.save(2, state_of(2), {})
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_gone_is_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    made = save_steps(run / "checkpoints", 1)
    shutil.rmtree(run)
    made.save(2, state_of(2), {})
    assert "No such file or directory" in made.wait() and not run.exists()


def test_a_save_that_a_run_did_not_wait_for_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, made = Gate(monkeypatch, module, "write_part"), saver(tmp_path)
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    made.save(1, state_of(1), {"step": 1})
    assert gate.reached.wait(20)
    made.leave()
    gate.opened.set()
    assert "step 1 could not be saved" in made.wait() and list(tmp_path.iterdir()) == []


def test_an_error_of_the_thread_is_the_main_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "write_part", broken)
    made = saver(tmp_path)
    made.save(1, state_of(1), {})
    with pytest.raises(ZeroDivisionError):
        made.wait()


def test_an_error_of_one_ranks_thread_leaves_no_rank_waiting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    def work() -> None:
        with World() as world, pytest.MonkeyPatch.context() as patch:
            made = saver(tmp_path / "checkpoints", world)
            if not world.main:
                patch.setattr(module, "write_part", broken)
            made.save(1, state_of(1, world), {})
            with pytest.raises(PeerError if world.main else ZeroDivisionError):
                made.wait()
            assert world.sum_(torch.ones(1)) == 2  # both are here, and in step

    assert fork_ranks(2, work) == [0, 0], capfd.readouterr().err


def test_what_a_damaged_checkpoint_had_for_a_name_goes_to_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_steps(tmp_path, 1, 2, 3)
    for step in (2, 3):
        (tmp_path / f"step-{step}" / "rank-00000.json").unlink()
    found = newest_whole(tmp_path, World())
    made = saver(tmp_path, keep=2)
    made.damaged = set(found.damaged)
    for step in (2, 3, 4):
        made.save(step, state_of(step), {})
        assert made.wait() == ""
        text = f"{tmp_path / f'step-{step}'}: what had this name is removed, for the new one is whole\n"
        assert capsys.readouterr().out == (text if step < 4 else "")
        assert damage(tmp_path / f"step-{step}") == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-4"]


def test_a_step_that_is_saved_twice_is_there_at_every_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = save_steps(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("rmfast.data.files.os.rename", None)  # no name is taken away
        patch.setattr(Path, "rename", None)
        made.save(1, state_of(1), {})
        assert made.wait() == ""
    assert damage(tmp_path / "step-1") == "" and os.listdir(tmp_path) == ["step-1"]


def test_a_damaged_checkpoint_takes_no_whole_ones_place(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2, 30)
    for step in (2, 30):
        (tmp_path / f"step-{step}" / "rank-00000.json").unlink()
    made = saver(tmp_path, keep=2)
    made.damaged = set(newest_whole(tmp_path, World()).damaged)
    made.save(5, state_of(5), {})
    made.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2", "step-30", "step-5"]


def test_one_of_two_ranks_has_a_full_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoints"

    def work() -> None:
        with World() as world, pytest.MonkeyPatch.context() as patch:
            made = save_steps(folder, 1, world=world)
            if not world.main:
                full = failing(patch, "shard")
            made.save(2, state_of(2, world), {})
            line = made.wait()
            part = folder / ".step-2.partial" / "rank-00001.safetensors"
            why = f": {part}: No space left on device; step 1 is safe" if world.main else ""
            assert line == f"step 2 could not be saved{why}"
            world.barrier()
            assert [path.name for path in folder.iterdir()] == ["step-1"]
            world.barrier()
            if not world.main:
                full(False)
            made.save(3, state_of(3, world), {})
            assert made.wait() == ""
            assert newest_whole(folder, world).path == folder / "step-3"
            assert torch.equal(rows(folder / "step-3"), state_of(3, World.alone(world))["model/w"].tensor)

    assert fork_ranks(2, work) == [0, 0], capfd.readouterr().err
