"""The processes of a run, as torchrun started them."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast import signals
from rmfast.errors import Interrupted, PeerError, RunError, UserError
from rmfast.parallel.process_group import (
    close_groups,
    line_group,
    lost_peer,
    new_group,
    open_group,
    say_error,
    say_where_main_does_not,
)

POLL = 1.0
"""Seconds between looks at whether the others have ended their work."""


class World:
    """Rank, size and device of this process; collectives do nothing in a world of one.

    Use as a context manager: it opens the process group and closes it. After an error on GPUs it stays open, and the
    process must end by `os._exit`: to close NCCL's part, all ranks must, and the others may be in a collective.

    Raises:
        UserError: there are more processes on this machine than GPUs.
        PeerError: on leaving, in place of gloo's error where another rank has ended or does not answer.
    """

    def __init__(self, timeout_minutes: float = 60.0) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        cuda = torch.cuda.is_available()
        if cuda:
            self._check_gpus(torch.cuda.device_count())
        self.device = torch.device("cuda", self.local_rank) if cuda else torch.device("cpu")
        self.timeout = timedelta(minutes=timeout_minutes)
        self._group: dist.ProcessGroup | None = None  # None: not open, or without one
        self._main: bool | None = None  # None: rank 0
        self._whole: World | None = None  # the ranks that end their work together; None: these
        self._works = 0  # times that ranks worked apart

    def _check_gpus(self, gpus: int) -> None:
        processes = max(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), self.local_rank + 1)
        if processes <= gpus:
            return
        line = (
            f"torchrun's --nproc_per_node: {processes} processes on this machine and {gpus} GPU{'s' * (gpus > 1)} that "
            f"they see (CUDA_VISIBLE_DEVICES); start at most {gpus}"
        )
        if self.local_rank == 0 and self.rank:  # of a machine that rank 0, which prints its line, is not on
            say_error(self.rank, line)
        raise UserError(line)

    @classmethod
    def within(cls, world: "World", group: dist.ProcessGroup) -> "World":
        """Some ranks of a world, in the group's order. Only rank 0 of the whole world is `main`."""
        out = cls()
        out.rank, out.size, out.device = dist.get_rank(group), dist.get_world_size(group), world.device
        out._group, out._main, out._whole = group, world.main, world._whole or world
        return out

    @classmethod
    def alone(cls, world: "World") -> "World":
        """This process without the others, on its device: a world of one."""
        out = cls()
        out.rank, out.size, out.device = 0, 1, world.device
        return out

    @contextlib.contextmanager
    def part(self, size: int, timeout_minutes: float) -> Iterator["World"]:
        """Consecutive ranks as a world, this one among them; all ranks of the whole world call it.

        Inside, the part's process group is torch's default one. What names no group (DDP, FSDP, megatron-core, the
        making of further groups) then sees the part as it would see a job of that size: no rank of another part takes
        part in it or waits for it. Worlds that were there before still reach all their ranks.

        Args:
            size: ranks of each part; it divides this world's. timeout_minutes: of a part's ranks for each other.
        """
        if self.size == 1:
            yield self
            return
        # NCCL splits communicators, in which every rank of the whole must take part, in one order: no
        # use_local_synchronization.
        timeout = timedelta(minutes=timeout_minutes)
        starts = range(0, self.size, size)
        groups = [new_group(range(start, start + size), self.device, timeout) for start in starts]
        world = World.within(self, groups[self.rank // size])
        world._main, world._whole, world.timeout = None, None, timeout
        del groups  # who destroys a group must hold the last reference to it
        before = dist.group.WORLD
        dist.group.WORLD = world._group
        try:
            yield world
        finally:
            dist.group.WORLD, world._group = before, None

    def __enter__(self) -> "World":
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size > 1:
            open_group(self.device, self.timeout)
            self._group = dist.group.WORLD
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not dist.is_initialized():
            return
        peer = lost_peer(error)
        # On GPUs others may wait in a collective of NCCL, and this rank would wait for them.
        if error is None or isinstance(error, Interrupted) or self.device.type != "cuda":
            self._close(error)
        if peer is not None:
            raise peer from None

    def _close(self, error: BaseException | None) -> None:
        if isinstance(error, UserError | RunError) and not isinstance(error, PeerError):
            say_where_main_does_not(str(error))
        self._group = None
        close_groups()

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0 if self._main is None else self._main

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1), group=self._group)

    @contextlib.contextmanager
    def apart(self) -> Iterator[Callable[[], object]]:
        """Within it each rank works alone, for as long as its work takes; at its end all wait for all. Ranks of the
        whole world enter it in the same order.

        Gives what a rank calls now and then while it works: those that wait do so until for `timeout` nobody has.

        Raises:
            RunError: nobody has.
        """
        if self.size == 1:
            yield lambda: None
            return
        self._works += 1
        store = dist.distributed_c10d._get_default_store()
        signs, arrived = f"rmfast/work {self._works}/signs", f"rmfast/work {self._works}/arrived"
        yield lambda: store.add(signs, 1)
        store.add(arrived, 1)
        seen, since = store.add(signs, 0), time.monotonic()
        while (here := store.add(arrived, 0)) < self.size:
            if (now := store.add(signs, 0)) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self.timeout.total_seconds():
                minutes = self.timeout.total_seconds() / 60
                raise RunError(
                    f"{self.size - here} of {self.size} processes have not shown for {minutes:g} minutes that they work"
                )
            time.sleep(POLL)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on one of the ranks."""
        return bool(self.sum_(torch.tensor(float(flag))))

    def check_signals(self, reached: str) -> None:
        """End the work of all ranks where one of them was asked to; all call it.

        All are those of the whole world or of a part: of ranks that compute one model together none may go on alone.

        Args:
            reached: see `rmfast.signals.interrupted`.

        Raises:
            Interrupted: one was.
        """
        if (self._whole or self).any(signals.asked(look=self.main)):
            raise signals.interrupted(reached)

    def thread_store(self) -> dist.Store:
        """A connection to the store by which ranks met, for a thread beside the main one."""
        store: Any = dist.distributed_c10d._get_default_store()  # torch's stub knows no clone
        found: dist.Store = store.clone()
        return found

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return tensor

    def line(self, lines: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
        """A new group, of the line of ranks that has this one, if any. All ranks of the world call it; those of a part,
        inside it."""
        group: dist.ProcessGroup | None = line_group(lines, self.device, self.timeout)
        return group

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The process group of these ranks; None in a world of one that has none."""
        return self._group

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor; all have one shape."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self._group)
        return parts
