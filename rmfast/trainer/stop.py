"""Ending a run early and whole: on a signal, or where a file RUN/stop appears (see `rmfast.signals`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast import signals
from rmfast.data.files import write_text
from rmfast.errors import Interrupted
from rmfast.parallel.world import World

STOP, REQUEUE = "stop", "requeue"


class StopRequest:
    """Whether a run is to end; all its ranks learn it after the same step.

    Args:
        folder: the command's run folder, where rank 0 looks for `stop`.
        world: the ranks that must agree.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self._file = signals.StopFile(folder / STOP)
        self._pending: tuple[Tensor, dist.Work] | None = None

    def within(self, world: World) -> "StopRequest":
        """For some of the ranks, which step without the others; their first one looks for them."""
        return StopRequest(self.folder, world)

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
        return self.world.any(self._heard())

    def interrupted(self, saved: str) -> Interrupted:
        """What ends the run, once something is saved."""
        return signals.interrupted(f"{saved} is saved", **({"found": str(self._file.path)} if self._file.seen else {}))

    def _heard(self) -> bool:
        return bool(signals.heard) or (self.world.main and self._file.found())


@contextmanager
def listening(folder: Path, world: World) -> Iterator[StopRequest]:
    """Note signals in place of dying of them, and look for `folder/stop`. Where the run ends in Interrupted, rank 0
    leaves the file `folder/requeue`, with a line `signals: NAMES` where it was not a person's file that ended it;
    `stop` is taken away by the run that obeys it, or ends anyway."""
    with signals.noted(), signals.looking_for(folder / STOP):
        try:
            yield StopRequest(folder, world)
        except Interrupted as stopped:
            if world.main:
                why = f"signals: {' '.join(dict.fromkeys(signals.heard))}\n" if signals.heard else ""
                write_text(folder / REQUEUE, f"{stopped}\n{why}")
                (folder / STOP).unlink(missing_ok=True)
            raise
        if world.main:
            (folder / REQUEUE).unlink(missing_ok=True)
            (folder / STOP).unlink(missing_ok=True)
