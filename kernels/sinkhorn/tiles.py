"""Tile sizes of Sinkhorn's kernels: tables, as attention's are."""

from typing import NamedTuple

from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.launch import capability, next_power_of_2
from rmfast.kernels.tables import ANY, Table


class Columns(NamedTuple):
    """Rows and columns of a tile of the kernel that sweeps along columns, and its warps."""

    rows: int
    columns: int
    warps: int


class Rows(NamedTuple):
    """Columns and 8-byte values, at most, that a sweep along rows holds at a time, and its warps."""

    columns: int
    values: int
    warps: int


# By generation and the largest number of columns that a line is for.
COLUMNS: Table[Columns] = Table(
    {
        (80, ANY): Columns(32, 64, 4),
    }
)
ROWS: Table[Rows] = Table(
    {
        (80, ANY): Rows(1024, 2048, 4),
    }
)


def column_tile(scores: Tensor) -> Columns:
    """For scores [..., K]."""
    return Columns(32, 64, 4) if INTERPRETED else COLUMNS.find(capability(scores), size=scores.shape[-1])


def row_tile(scores: Tensor) -> tuple[int, int, int]:
    """(rows, columns, warps) of a tile that sweeps along rows of scores [..., K]."""
    columns = scores.shape[-1]
    found = Rows(64, 4096, 4) if INTERPRETED else ROWS.find(capability(scores), size=columns)
    width = min(found.columns, max(8, next_power_of_2(columns)))  # a tile has an element for each thread of a warp
    return max(1, min(32, found.values // width * 4) // maths_dtype(scores).itemsize), width, found.warps
