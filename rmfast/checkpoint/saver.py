"""Saving beside the steps: a step waits until its state is copied, and a thread writes the copy.

The thread flushes and renames too, so that a checkpoint is complete as soon as it can be. Ranks tell rank 0 by the
store through which they met that their parts are written: a collective of the thread would meet those of the steps.
"""

import errno
import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmfast.checkpoint.store import (
    Checksums,
    list_checkpoints,
    partial_folder,
    publish_checkpoint,
    remove_checkpoint,
    remove_unfinished,
    step_of,
    write_extras,
    write_part,
    written_by,
)
from rmfast.console import say
from rmfast.errors import PeerError
from rmfast.outputs.checksums import Checksum
from rmfast.parallel.engine import Shard
from rmfast.parallel.notes import Notes
from rmfast.parallel.world import World

PATIENCE = 30.0
"""Seconds that a run which ends of an error waits for a save that is on its way."""
MOST_FAILURES = 3
"""Saves in a row that may fail beside the steps. With each of them a crash costs an interval more; a disk that had no
room for so long gets some from nobody, and what the run adds cannot be kept."""


@dataclass
class _Save:
    """A save on its way.

    Attributes:
        failure: what kept it from being written, as far as this rank knows. error: of the thread, a bug.
        said: whether the failure was.
    """

    step: int
    failure: str = ""
    error: BaseException | None = None
    said: bool = False
    thread: threading.Thread | None = None

    def ended(self, timeout: float | None = None) -> bool:
        """Wait for the thread; whether it has ended."""
        if self.thread is not None:
            self.thread.join(timeout)
        return self.thread is None or not self.thread.is_alive()


class Saver:
    """Writes a run's checkpoints `folder/step-N`. All ranks make one and call the same methods in the same order.

    Args:
        extras: writes what makes the folder a model (config, tokenizer); called once, on rank 0.
        keep: newest whole checkpoints that stay.
        before: what must be on the disk before a checkpoint is; called on rank 0, in the thread.

    Attributes:
        safe: the newest step that is known to be saved whole. damaged: checkpoints that do not count.
        failures: saves in a row, up to the last that was waited for, that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        extras: Callable[[Path], None],
        keep: int,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.world, self.keep, self.before = folder, world, keep, before
        self.safe: int | None = None
        self.damaged: set[Path] = set()
        self.failures = 0
        self._write_extras = extras
        self._extras: dict[str, bytes] | None = None
        self._notes = Notes(world, f"checkpoints of {folder}")
        self._saves = 0
        self._save: _Save | None = None
        self._left = False

    @property
    def begun(self) -> int | None:
        """The step of the newest save, as long as nobody has waited for it."""
        return None if self._save is None else self._save.step

    def save(self, step: int, state: Mapping[str, Shard], progress: Mapping[str, Any]) -> None:
        """Begin to write a step's checkpoint, after the one before; it takes the place of the oldest.

        Returns when the state is copied. What cannot be written is said; the next save is another try.

        Args:
            state: this process's shards, which may change afterwards.
            progress: plain values that the run goes on from.
        """
        if self._save is not None:
            self._save.ended()
        self.report()
        self.wait()
        self._saves += 1
        self._save = save = _Save(step)
        try:
            if self.world.main:
                self._begin(step)
        except OSError as error:
            save.failure = self._words(step, self._reason(error))
        if self.world.sum_(torch.tensor(float(bool(save.failure)))):
            save.failure = save.failure or f"step {step} could not be saved"  # rank 0 says why
            return
        shards, copied = _host_copy(written_by(self.world, state))
        work = (save, self._saves, shards, copied, dict(progress))
        save.thread = threading.Thread(target=self._run, args=work, name="save", daemon=True)
        save.thread.start()

    def wait(self) -> str:
        """Wait for the save that is on its way; what kept it from being written, empty where nothing did.

        Raises:
            PeerError: the thread of another rank ended of an error, as this rank's does by that error itself.
        """
        save, self._save = self._save, None
        if save is None:
            return ""
        save.ended()
        # Told before it is raised: none may be left waiting.
        told = torch.tensor([float(save.error is not None), float(bool(save.failure))])
        errors, failed = self.world.sum_(told).tolist()
        if save.error is not None:
            raise save.error
        if errors:
            raise PeerError("another rank could not save; its line says why")
        self.failures = self.failures + 1 if failed else 0
        return save.failure or (f"step {save.step} could not be saved" if failed else "")

    def report(self) -> None:
        """Say on rank 0, once, that a save has failed."""
        save = self._save
        if save is None or not save.ended(0.0):
            return
        if save.failure and not save.said and self.world.main:
            say(f"{save.failure}; the run goes on, and another try follows")
        save.said = True

    def leave(self) -> None:
        """Before a run ends of an error: let a save that is on its way become whole.

        One that takes too long gets no name afterwards, when another process may hold the run's folder.
        """
        if self._save is not None:
            self._left = not self._save.ended(PATIENCE)

    def _begin(self, step: int) -> None:
        """Make the folder that all ranks write to, and remove what saves that were killed left."""
        if self._extras is None:
            self._extras = _files_of(self._write_extras)
        self.folder.mkdir(exist_ok=True)  # not what it is in: a run's folder that is gone is not made again
        remove_unfinished(self.folder)
        partial_folder(self.folder, step).mkdir()

    def _run(
        self, save: _Save, number: int, shards: dict[str, Shard], copied: Callable[[], None], progress: dict[str, Any]
    ) -> None:
        """What the thread does."""
        told: dict[str, Any] = {"failure": "a part of it was not written"}
        try:
            try:
                copied()
                told = self._write(save, shards)
            finally:  # rank 0 waits for it
                self._notes.leave(number, json.dumps(told))
            if self.world.main:
                self._complete(save, [json.loads(text) for text in self._notes.collect(number)], progress)
        except BaseException as error:  # of whichever kind: the main thread raises it
            save.error = error

    def _write(self, save: _Save, shards: dict[str, Shard]) -> dict[str, Any]:
        """Write this rank's part; what rank 0 is told of it."""
        temporary = partial_folder(self.folder, save.step)
        try:
            written = write_extras(temporary, self._extras or {}) if self.world.main else {}
            written |= write_part(temporary, self.world.rank, shards)
        except OSError as error:
            save.failure = f"step {save.step} could not be saved"  # rank 0 says why
            return {"failure": self._reason(error)}
        return {"files": {name: asdict(checksum) for name, checksum in written.items()}}

    def _complete(self, save: _Save, told: list[dict[str, Any]], progress: dict[str, Any]) -> None:
        """Give the checkpoint its name if all parts are written, or remove what is there of it."""
        temporary = partial_folder(self.folder, save.step)
        failure = next((one["failure"] for one in told if "failure" in one), "")
        if not failure:
            written = {name: Checksum(**checksum) for one in told for name, checksum in one["files"].items()}
            try:
                self._publish(save.step, written, progress)
            except OSError as error:
                failure = self._reason(error)
        if failure:
            shutil.rmtree(temporary, ignore_errors=True)
            save.failure = self._words(save.step, failure)

    def _publish(self, step: int, written: Checksums, progress: dict[str, Any]) -> None:
        self.before()
        if self._left:
            raise OSError(errno.ETIMEDOUT, "the run ended before it was written")
        replaced = publish_checkpoint(self.folder, step, ranks=self.world.size, progress=progress, written=written)
        self.safe = step
        self.damaged.discard(self.folder / f"step-{step}")
        if replaced:
            say(f"{self.folder / f'step-{step}'}: what had this name is removed, for the new one is whole")
        counted = [path for path in list_checkpoints(self.folder) if path not in self.damaged and step_of(path) <= step]
        for old in counted[: -self.keep]:
            try:
                remove_checkpoint(old)
            except OSError as error:
                say(f"{old}: cannot be removed: {error.strerror}")

    def _words(self, step: int, reason: str) -> str:
        safe = "no step is safe yet" if self.safe is None else f"step {self.safe} is safe"
        return f"step {step} could not be saved: {reason}; {safe}"

    def _reason(self, error: OSError) -> str:
        return f"{error.filename or self.folder}: {error.strerror or error}"


def _files_of(write: Callable[[Path], None]) -> dict[str, bytes]:
    """The files that a function writes into a folder, by their names in it."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        found = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in found}


def _host_copy(state: Mapping[str, Shard]) -> tuple[dict[str, Shard], Callable[[], None]]:
    """The shards in the host's memory, and what waits until they are there.

    Those of a GPU go to pinned memory while it works on: its stream keeps what changes them behind the copy.
    """
    copies = {name: replace(shard, tensor=_copied(shard.tensor)) for name, shard in state.items()}
    if not any(shard.tensor.is_cuda for shard in state.values()):
        return copies, lambda: None
    event = torch.cuda.Event(blocking=True)
    event.record()
    return copies, event.synchronize


def _copied(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach(), non_blocking=True)
