"""Tile sizes of InfoNCE's kernels: a table, as attention's are."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

from rmfast.kernels.launch import capability, next_power_of_2
from rmfast.kernels.tables import ANY, Table


class Tile(NamedTuple):
    """Block sizes along queries, keys and width (at most; 0: the whole width), warps and pipeline stages."""

    m: int
    n: int
    d: int
    warps: int
    stages: int


class Blocks(NamedTuple):
    """Block sizes along queries, keys and width, and what the compiler is told."""

    m: int
    n: int
    d: int
    options: dict[str, Any]


Pass = Literal["forward", "gradient", "resident"]

# By generation, precision and pass: "gradient" writes chunks of the gradients of similarities, "resident" keeps whole
# rows. "narrow" is bf16 and fp16 where 16 does not divide the width: rows that are not aligned take more registers.
TILES: Table[Tile] = Table(
    {
        (80, "half", "forward", ANY): Tile(128, 128, 64, 8, 3),
        (80, "half", "gradient", ANY): Tile(128, 128, 64, 8, 3),
        (80, "half", "resident", ANY): Tile(128, 64, 0, 8, 2),  # a third stage spills where 16 does not divide the keys
        (90, "half", "resident", ANY): Tile(128, 64, 0, 8, 3),
        (80, "narrow", "forward", ANY): Tile(64, 64, 64, 8, 2),
        (80, "narrow", "gradient", ANY): Tile(64, 64, 64, 8, 2),
        (80, "narrow", "resident", ANY): Tile(64, 64, 0, 8, 2),
        (80, "full", "forward", ANY): Tile(64, 64, 16, 4, 2),
        (80, "full", "gradient", ANY): Tile(64, 64, 16, 4, 2),
        (80, "full", "resident", ANY): Tile(64, 16, 0, 8, 2),
        (80, "double", "forward", ANY): Tile(16, 16, 16, 8, 1),
        (80, "double", "gradient", ANY): Tile(16, 16, 16, 8, 1),
        (80, "double", "resident", ANY): Tile(16, 16, 0, 8, 1),
    }
)


def blocks(which: Pass, x: Tensor) -> Blocks:
    """For a pass over vectors x [N, d]."""
    width = x.shape[1]
    whole = max(16, next_power_of_2(width))
    device = capability(x)
    if device == (0, 0):
        return Blocks(32, 32, whole if which == "resident" else min(64, whole), {})
    precision = {8: "double", 4: "full"}.get(x.dtype.itemsize, "narrow" if width % 16 else "half")
    found = TILES.find(device, precision, which, size=width)
    return Blocks(
        found.m, found.n, min(found.d or whole, whole), {"num_warps": found.warps, "num_stages": found.stages}
    )
