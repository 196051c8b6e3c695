"""Work that ranks do without each other, and what they make of it together."""

from collections.abc import Callable
from typing import TypeVar

import torch

from rmfast import signals
from rmfast.errors import Interrupted, PeerError, RunError, UserError
from rmfast.outputs.failure import disk_line
from rmfast.parallel.process_group import lost_peer, say_error
from rmfast.parallel.world import World

T = TypeVar("T")


def all_or_none(world: World, work: Callable[[], T], part: World | None = None) -> T:
    """Do work that holds no collective of all ranks. Where it fails on one, all raise: none may be left waiting.

    Args:
        part: ranks that do the work together, if it is not each by itself. Where it fails on one of these, the others
            may be waiting for it in the midst of it: it leaves at once, and its going ends them all.

    Returns:
        What the work gives on this rank.
    """
    error: UserError | RunError | OSError | Interrupted | None = None
    try:
        try:
            result = work()
        except (UserError, RunError, OSError, Interrupted) as raised:
            error = raised
            if not world.main:  # rank 0 prints its line
                say_error(world.rank, disk_line(error) or str(error))
            if part is not None and part.size > 1 and not isinstance(error, Interrupted):
                raise
        failed = float(isinstance(error, UserError | RunError | OSError))
        failures, stops = world.sum_(torch.tensor([failed, float(isinstance(error, Interrupted))])).tolist()
    except RuntimeError as end:
        if (peer := lost_peer(end)) is None:
            raise
        raise peer from end
    if failed and error is not None:
        raise error
    if failures:
        raise PeerError("another rank could not go on; its line says why")
    if stops:
        raise error or Interrupted(f"another rank was asked to stop; {signals.GOES_ON}")
    return result


def main_alone(world: World, work: Callable[[], list[str]]) -> list[str]:
    """Lines that rank 0 gives of its work, for which the others wait; see `all_or_none`."""
    return all_or_none(world, work if world.main else list)
