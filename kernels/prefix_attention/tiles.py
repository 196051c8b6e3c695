"""Tile sizes of the attention kernels: a table, not a search, so that results and compiled kernels never vary."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rmfast.kernels.launch import TRITON, capability
from rmfast.kernels.tables import Table


class Tile(NamedTuple):
    """Queries and keys of a step of the loop, warps and pipeline stages, and the registers that a thread may take.

    None: as many as ptxas likes, which may spill a few for more programs at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


Pass = Literal["fwd", "dq", "dkv"]

# By generation, precision, pass, and the largest head dimension that a line is for. "half" is bf16 and fp16: compiled
# without spills for sm_80 and sm_90, also in the form for `rows`; more keys or queries a step spill, above all on sm_80
# and with a window and a softcap. "narrow" is the same where a head's values do not begin at a multiple of 16 elements:
# loads are narrow and take registers. Without spills for dimensions that 4 divides; odd ones still spill a little, and
# so do such dimensions in fp32. "full" is fp32: multiplied exactly, without tensor cores.
TILES: Table[Tile] = Table(
    {
        (80, "half", "fwd", 64): Tile(64, 64, 4, 3),
        (90, "half", "fwd", 64): Tile(64, 64, 4, 3, 168),
        (80, "half", "fwd", 128): Tile(128, 64, 8, 3),
        (90, "half", "fwd", 128): Tile(128, 64, 8, 3),
        (80, "half", "fwd", 256): Tile(32, 32, 8, 2),
        (90, "half", "fwd", 256): Tile(64, 32, 8, 2, 255),
        (80, "half", "dq", 64): Tile(64, 32, 4, 2),
        (80, "half", "dq", 128): Tile(64, 64, 8, 2),
        (80, "half", "dq", 256): Tile(64, 16, 8, 2),
        (90, "half", "dq", 256): Tile(64, 16, 8, 2),
        (80, "half", "dkv", 64): Tile(64, 32, 4, 1),
        (80, "half", "dkv", 128): Tile(64, 64, 8, 1),
        (90, "half", "dkv", 128): Tile(32, 64, 8, 2),
        (80, "half", "dkv", 256): Tile(32, 32, 8, 1),
        (80, "narrow", "fwd", 64): Tile(64, 64, 8, 2),
        (80, "narrow", "fwd", 256): Tile(32, 32, 8, 2),
        (80, "narrow", "dq", 64): Tile(64, 16, 4, 2),
        (80, "narrow", "dq", 128): Tile(32, 32, 8, 2),
        (80, "narrow", "dq", 256): Tile(16, 16, 4, 2),
        (80, "narrow", "dkv", 64): Tile(64, 32, 4, 1),
        (80, "narrow", "dkv", 128): Tile(64, 64, 8, 1),
        (90, "narrow", "dkv", 128): Tile(16, 64, 8, 1),
        (80, "narrow", "dkv", 256): Tile(32, 32, 8, 1),
        (80, "full", "fwd", 64): Tile(32, 32, 4, 1),
        (80, "full", "fwd", 128): Tile(16, 32, 8, 1),
        (80, "full", "fwd", 256): Tile(16, 16, 8, 1),
        (80, "full", "dq", 64): Tile(32, 32, 8, 1),
        (80, "full", "dq", 128): Tile(16, 16, 4, 2, 255),
        (80, "full", "dq", 256): Tile(16, 16, 4, 2, 255),
        (90, "full", "dq", 256): Tile(16, 16, 4, 2),
        (80, "full", "dkv", 64): Tile(32, 32, 4, 1),
        (80, "full", "dkv", 128): Tile(16, 32, 8, 1),
        (80, "full", "dkv", 256): Tile(16, 16, 8, 1),
    }
)
# What spills with a compiler of Triton 3.7 or later, and how it does not with any of them.
if TRITON >= (3, 7):
    TILES.lines |= {
        (80, "half", "fwd", 128): Tile(128, 32, 8, 3),
        (80, "half", "fwd", 256): Tile(64, 32, 8, 2, 255),
        (80, "half", "dq", 256): Tile(32, 32, 8, 2),
        (80, "narrow", "fwd", 256): Tile(32, 32, 8, 2, 255),
        (80, "full", "fwd", 128): Tile(16, 32, 8, 1, 255),
        (80, "full", "dkv", 128): Tile(16, 32, 8, 1, 255),
    }
if TRITON == (3, 8):  # by this compiler alone 64 keys spill, with 16, 32 or 64 queries
    TILES.lines[(90, "narrow", "dkv", 128)] = Tile(32, 32, 8, 1)
# Where the table has no line of its own: what only 3.7 makes without spills, and what later ones, which compute more
# addresses in a pipeline, make shorter without one.
TILES.lines.setdefault((90, "half", "dkv", 64), Tile(64 if TRITON == (3, 7) else 32, 64, 4, 2))
if TRITON >= (3, 8):
    TILES.lines.setdefault((90, "half", "dq", 64), Tile(64, 32, 4, 1))


def tile(which: Pass, q: Tensor, rows: bool, limited: bool) -> Tile:
    """The tile for q's dtype and head dimension.

    Args:
        rows: q holds some tokens only, so fewer of them share a tile.
        limited: there is a window or a softcap, which take registers in the backward.
    """
    if q.dtype == torch.float64:
        return Tile(16, 16, 4, 1)
    device = capability(q)
    if device == (0, 0):
        return Tile(16, 32, 4, 1)
    precision = "full" if q.dtype.itemsize == 4 else "narrow" if q.shape[2] % 16 else "half"
    found = TILES.find(device, precision, which, size=q.shape[2])
    if limited and which == "dkv" and found.queries == 64:
        found = found._replace(queries=32)
    if limited and which == "dq" and found.keys == 64:
        found = found._replace(keys=32)
    if rows:  # dk and dv hold as many keys as ever
        found = found._replace(queries=16, warps=found.warps if which == "dkv" else 4)
    return found
