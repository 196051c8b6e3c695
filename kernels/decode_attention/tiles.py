"""Tile sizes of the decode kernels and into how many parts they split the keys: from sizes that the host knows."""

from typing import NamedTuple

import torch
from torch import Tensor

from rmfast.kernels.common import INTERPRETED
from rmfast.kernels.launch import capability, cdiv, next_power_of_2
from rmfast.kernels.tables import Table

QUERIES = 16  # of a program: the fewest that a tensor core multiplies
PROGRAMS = 16 if INTERPRETED else 1024  # that keep a device of some hundred multiprocessors busy
MOST_PARTS = 16


class Tile(NamedTuple):
    """Keys of a step of the loop, warps and pipeline stages."""

    keys: int
    warps: int
    stages: int


# By generation, precision, and the largest head dimension that a line is for: "half" is bf16 and fp16, "full" fp32,
# multiplied exactly, without tensor cores.
TILES: Table[Tile] = Table(
    {
        (80, "half", 64): Tile(64, 4, 3),
        (80, "half", 128): Tile(64, 4, 3),
        (80, "half", 256): Tile(32, 4, 3),
        (80, "full", 64): Tile(32, 4, 1),
        (80, "full", 128): Tile(32, 4, 2),
        (80, "full", 256): Tile(16, 8, 2),
    }
)


class Split(NamedTuple):
    """Heads of a program, of those that share a key head (`blocks` of them), padded to a power of two; rows of a
    program; parts of a prompt's keys, and of the keys that a row has after it."""

    heads: int
    blocks: int
    rows: int
    prompt_parts: int
    own_parts: int


def tile(q: Tensor) -> Tile:
    """The tile for q's dtype and head dimension."""
    if q.dtype == torch.float64 or capability(q) == (0, 0):
        return Tile(32, 4, 1)
    return TILES.find(capability(q), "full" if q.dtype.itemsize == 4 else "half", size=q.shape[2])


def split(rows: int, group: int, kv_heads: int, prompt_tokens: int, own_tokens: int, keys: int) -> Split:
    """How the work is cut up, for `rows` queries of `group` heads a key head.

    Parts are as many as give each device enough programs, and no more than there are steps of `keys` in a pool.
    """
    heads = min(next_power_of_2(group), QUERIES)
    blocks, together = cdiv(group, heads), QUERIES // heads
    columns = kv_heads * blocks

    def parts(programs: int, tokens: int) -> int:
        return max(1, min(cdiv(PROGRAMS, max(programs, 1)), MOST_PARTS, cdiv(tokens, keys)))

    prompt_parts = parts(cdiv(rows, together) * columns, prompt_tokens)
    return Split(heads, blocks, together, prompt_parts, parts(rows * columns, own_tokens))
