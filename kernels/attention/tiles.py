"""Tile sizes of the attention kernels: a table, not a search, so that results and compiled kernels never vary."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rmfast.kernels.launch import capability


class Tile(NamedTuple):
    """Queries and keys of a step of the loop, warps and pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


Pass = Literal["fwd", "dq", "dkv"]

# bf16 and fp16, by the largest head dimension that a line is for. Compiled without spills for sm_80 and sm_90, also in
# the form for `rows`; more keys or queries a step spill, above all on sm_80 and with a window and a softcap.
HALF: dict[Pass, tuple[tuple[int, Tile], ...]] = {
    "fwd": ((64, Tile(64, 64, 4, 3)), (128, Tile(128, 64, 8, 3)), (256, Tile(64, 32, 8, 2))),
    "dq": ((64, Tile(64, 32, 4, 2)), (128, Tile(64, 64, 8, 2)), (256, Tile(64, 16, 8, 2))),
    "dkv": ((64, Tile(64, 32, 4, 1)), (128, Tile(64, 64, 8, 1)), (256, Tile(32, 32, 8, 1))),
}
# The same where a head's values do not begin at a multiple of 16 elements: their loads are narrow and take registers.
# Without spills for dimensions that 4 divides; odd ones still spill a little, and so do such dimensions in fp32.
NARROW: dict[Pass, tuple[tuple[int, Tile], ...]] = {
    "fwd": ((64, Tile(64, 64, 8, 2)), (256, Tile(32, 32, 8, 2))),
    "dq": ((64, Tile(64, 16, 4, 2)), (128, Tile(32, 32, 8, 2)), (256, Tile(16, 16, 4, 2))),
    "dkv": HALF["dkv"],
}
# fp32 is multiplied exactly, without tensor cores.
FULL: dict[Pass, tuple[tuple[int, Tile], ...]] = {
    "fwd": ((64, Tile(32, 32, 4, 1)), (128, Tile(16, 32, 8, 1)), (256, Tile(16, 16, 4, 1))),
    "dq": ((64, Tile(32, 32, 8, 1)), (128, Tile(16, 16, 4, 2)), (256, Tile(16, 16, 4, 2))),
    "dkv": ((64, Tile(32, 32, 4, 1)), (128, Tile(16, 32, 8, 1)), (256, Tile(16, 16, 8, 1))),
}


def tile(which: Pass, q: Tensor, rows: bool, capped: bool) -> Tile:
    """The tile for q's dtype and head dimension.

    Args:
        rows: q holds some tokens only, so fewer of them share a tile.
        capped: there is a softcap, whose tanh takes registers.
    """
    if q.dtype == torch.float64:
        return Tile(16, 16, 4, 1)
    if capability(q) == (0, 0):
        return Tile(16, 32, 4, 1)
    table = FULL if q.dtype.itemsize == 4 else NARROW if q.shape[2] % 16 else HALF
    found = next(t for width, t in table[which] if q.shape[2] <= width)
    if capped and which == "dkv" and found.keys == 64:
        found = found._replace(keys=32)
    return found._replace(queries=16, warps=4) if rows else found
