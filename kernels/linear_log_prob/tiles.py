"""Tile sizes of the kernels over logits: a table, as attention's are."""

from typing import Literal, NamedTuple

from torch import Tensor

from rmfast.kernels.common import INTERPRETED
from rmfast.kernels.launch import capability
from rmfast.kernels.tables import ANY, Table


class Tile(NamedTuple):
    """Logits of a row that a program holds at a time, and its warps."""

    block: int
    warps: int


# By generation, pass, and the largest vocabulary that a line is for.
TILES: Table[Tile] = Table(
    {
        (80, "fwd", ANY): Tile(4096, 8),
        (80, "bwd", ANY): Tile(4096, 8),
    }
)


def tile(which: Literal["fwd", "bwd"], hidden: Tensor, vocabulary: int) -> Tile:
    """For the device of `hidden`."""
    return Tile(64, 8) if INTERPRETED else TILES.find(capability(hidden), which, size=vocabulary)
