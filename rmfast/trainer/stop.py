"""Ending a run early and whole: on SIGTERM, on SIGUSR1, or where a file RUN/stop appears."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.errors import Interrupted
from rmfast.parallel.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP, REQUEUE = "stop", "requeue"
POLL = 1.0  # seconds between looks for the file


class StopRequest:
    """Whether a run is to end; all its ranks learn it after the same step.

    Args:
        folder: the command's run folder, where rank 0 looks for `stop`.
        world: the ranks that must agree.
        signals: names of those that came; `listening` adds to it.
    """

    def __init__(self, folder: Path, world: World, signals: list[str] | None = None) -> None:
        self.folder, self.world = folder, world
        self.signals: list[str] = [] if signals is None else signals
        self._found = False
        self._looked = -POLL
        self._pending: tuple[Tensor, dist.Work] | None = None

    def within(self, world: World) -> "StopRequest":
        """For some of the ranks, which step without the others; their first one looks for them."""
        return StopRequest(self.folder, world, self.signals)

    def alone(self) -> "StopRequest":
        """For a rank that steps without the others, and looks for itself."""
        return self.within(World.alone(self.world))

    def asked(self) -> bool:
        """Whether to end after the step that was just done; every rank calls it after every step.

        Several ranks act on what they had heard a step ago: the sum of that travels on the CPU's process group while a
        step runs, so that neither host nor device waits for it.
        """
        heard = self._heard()
        if self.world.size == 1:
            return heard
        before, flag = self._pending, torch.tensor(float(heard))
        self._pending = flag, dist.all_reduce(flag, group=self.world.group, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])

    def asked_now(self) -> bool:
        """The same, and ranks wait for each other; between steps that others ran, not after each."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None
        return bool(self.world.sum_(torch.tensor(float(self._heard()))))

    def interrupted(self, saved: str) -> Interrupted:
        """What ends the run, once something is saved."""
        found = str(self.folder / STOP) if self._found else "a signal to another rank"
        why = " and ".join(dict.fromkeys(self.signals)) or found
        return Interrupted(f"stopped by {why}: {saved} is saved; the same command on the same run.dir goes on")

    def _heard(self) -> bool:
        now = time.monotonic()
        if self.world.main and now - self._looked >= POLL:
            self._looked = now
            self._found = (self.folder / STOP).exists()
        return bool(self.signals) or self._found


@contextmanager
def listening(folder: Path, world: World) -> Iterator[StopRequest]:
    """Take note of signals instead of dying of them. Where the run ends in Interrupted, rank 0 leaves the file
    `folder/requeue`, with a line `signals: NAMES` where it was not a person's file that ended it; `stop` is taken away
    by the run that obeys it, or ends anyway."""
    request, process = StopRequest(folder, world), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked helper, which its pool ends by SIGTERM
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.signals.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    except Interrupted as stopped:
        if world.main:
            why = f"signals: {' '.join(dict.fromkeys(request.signals))}\n" if request.signals else ""
            (folder / REQUEUE).write_text(f"{stopped}\n{why}", encoding="utf-8")
            (folder / STOP).unlink(missing_ok=True)
        raise
    else:
        if world.main:
            (folder / REQUEUE).unlink(missing_ok=True)
            (folder / STOP).unlink(missing_ok=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
