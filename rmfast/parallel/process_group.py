"""Process groups of torch: how they are opened, how long they wait, and what is said where a rank ends of an error."""

import contextlib
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rmfast.errors import PeerError

STEP = timedelta(minutes=10)
"""How long a collective on GPUs may take at most. Ranks that wait for one of them to do something alone (prepare data,
write a checkpoint, export) wait on the CPU."""
GRACE = timedelta(seconds=5)  # for rank 0 to say what it ends of, before another rank says it
SAID = "rmfast/said"  # a key of the store by which ranks met: rank 0 has said what the job ends of
TOLD = "rmfast/told"  # how often ranks said what it ends of
replicas: WeakSet[DistributedDataParallel] = WeakSet()
"""All that compute by a group; see `close_groups`."""


def open_group(device: torch.device, timeout: timedelta, **place: Any) -> None:
    """Open torch's default process group: gloo for tensors on the CPU, NCCL beside it where there is a GPU.

    Args:
        device: of this process. timeout: of collectives on the CPU. place: this process's, in place of what torchrun
            says.
    """
    gpu = device.type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(backend, timeout=timeout, device_id=device if gpu else None, **place)
    _shorten(dist.group.WORLD, device, timeout)


def close_groups() -> None:
    """Close all process groups; `replicas` compute no more.

    They let go of the groups first, whoever holds them. DDP's native part, where it has the last reference to a group,
    frees it with the interpreter's lock and waits for gloo's threads, one of which may wait for that lock to free a
    tensor of the last collective: a rank that is done would never end. Whoever else holds a group frees it without.
    """
    for replica in replicas:
        del replica.reducer, replica.logger, replica.process_group
    replicas.clear()
    dist.destroy_process_group()


def new_group(ranks: Sequence[int], device: torch.device, timeout: timedelta) -> Any:
    """A group of some ranks of the default one, all of which call it; see `open_group`. Other ranks get no group."""
    group = dist.new_group(list(ranks), timeout=timeout)
    _shorten(group, device, timeout)
    return group


def line_group(lines: Sequence[Sequence[int]], device: torch.device, timeout: timedelta) -> Any:
    """The group of the line of ranks that this one is in; None where it is in none. All ranks of the default group call
    it with the same lines, which have no rank in common.

    However many lines there are, a rank makes one group: NCCL splits its communicator into all of them at once, and
    gloo asks only the ranks of a line. Within a part of the world, whose ranks have other numbers there than torch's
    split knows, a rank makes as many groups as there are lines.
    """
    world = dist.group.WORLD
    assert world is not None
    of_rank = [list(line) for line in lines if world.rank() in line]
    if device.type != "cuda":
        return dist.new_group(of_rank[0], timeout=timeout, use_local_synchronization=True) if of_rank else None
    numbered = dist.get_process_group_ranks(world) == list(range(world.size()))
    if not (numbered and world.bound_device_id and world._get_backend(device).supports_splitting):
        groups = [new_group(line, device, timeout) for line in lines]
        return next((group for line, group in zip(lines, groups, strict=True) if list(line) in of_rank), None)
    group = dist.split_group(split_ranks=[list(line) for line in lines], timeout=timeout)
    if group is not None:
        group._get_backend(torch.device("cpu"))._set_default_timeout(timeout)  # torch gives gloo another default
        _shorten(group, device, timeout)
    return group


def sole_group() -> Any:
    """A group of this rank alone, for who asks for a size: without a communicator of NCCL's."""
    return dist.new_group([dist.get_rank()], backend="gloo", use_local_synchronization=True)


def _shorten(group: Any, device: torch.device, timeout: timedelta) -> None:
    if device.type == "cuda" and isinstance(group, dist.ProcessGroup):
        group._get_backend(device)._set_default_timeout(min(timeout, STEP))


@cache
def say_error(rank: int, line: str) -> None:
    """Print what a rank other than 0 ends of, once."""
    print(f"rmfast: rank {rank}: {line}", file=sys.stderr, flush=True)


def say_for_all(line: str) -> None:
    """Print what this rank ends of, its process group open: rank 0 at once, another one where rank 0 says nothing."""
    if dist.get_rank() == 0:
        print(f"rmfast: {line}", file=sys.stderr, flush=True)
    say_where_main_does_not(line)


def say_where_main_does_not(line: str) -> None:
    """The same of a rank whose entry point prints the line where it is rank 0."""
    rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()
    if rank == 0:
        with contextlib.suppress(RuntimeError):
            store.set(SAID, line)
            store.add(TOLD, 1)
        return
    try:
        store.wait([SAID], GRACE)
    except RuntimeError:  # also where the store is gone
        say_error(rank, line)
        with contextlib.suppress(RuntimeError):
            store.add(TOLD, 1)


def lost_peer(error: BaseException | None) -> PeerError | None:
    """What a collective on the CPU that failed for want of another rank is called; None of other errors.

    Gloo has no error class. A collective on GPUs raises nothing: NCCL's watchdog ends the process. The line
    is empty where a rank has said why, or another one that one is lost.
    """
    if not (isinstance(error, dist.DistError) or (type(error) is RuntimeError and "/gloo/" in str(error))):
        return None
    rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()
    try:
        if store.add(TOLD, 1) > 1:
            return PeerError("")
    except RuntimeError:  # the store went with the rank that held it
        pass
    why = "does not answer (parallel.timeout_minutes)" if "imed out" in str(error) else "has ended without a word"
    line = f"another rank {why}: was it killed, is its machine there? Logs of the kernel and the scheduler may tell"
    if rank == 0:
        return PeerError(line)
    say_error(rank, line)
    return PeerError("")
