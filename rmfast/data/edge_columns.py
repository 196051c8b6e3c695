"""Columns of preference edges: one record from a store's files to a pack on a device.

A new column is a field here, its value in `NO_EDGE` and, for objectives, in `EdgeTensors`. One that data hold is also
read (`columns.EDGE_COLUMNS`, `edges`, `example.Edge`) and stored (`chunk`, `TokenStore`, and a new `store.FORMAT`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeColumns(Generic[A]):
    """E edges, as arrays or tensors: the numbers of the better and the worse response (integers [E]), and their margin,
    target (the probability that better is better) and weight (float32 [E])."""

    better: A
    worse: A
    margin: A
    target: A
    weight: A

    def map(self, change: Callable[[A], B]) -> "EdgeColumns[B]":
        """The edges with every column changed."""
        return EdgeColumns(**{name: change(getattr(self, name)) for name in NAMES})


NAMES = tuple(field.name for field in fields(EdgeColumns))
NO_EDGE = EdgeColumns[float](better=0, worse=0, margin=0.0, target=1.0, weight=0.0)
"""What fills a column behind its edges: an edge that counts for nothing."""


def take_edges(edges: EdgeColumns[np.ndarray], index: Any, first: Any) -> EdgeColumns[np.ndarray]:
    """Some edges, their responses numbered from `first` (one for all, or int [E]) on, int64."""
    some = {name: getattr(edges, name)[index] for name in NAMES}
    return EdgeColumns(**some | {end: first + some[end].astype(np.int64) for end in ("better", "worse")})


def join_edges(parts: Sequence[EdgeColumns[A]], join: Callable[[list[A]], A]) -> EdgeColumns[A]:
    """Edges behind each other; `join` does so with a column."""
    return EdgeColumns(**{name: join([getattr(part, name) for part in parts]) for name in NAMES})


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreEdges(EdgeColumns[np.ndarray]):
    """The edges of a store's G groups as a run uses them: the store's arrays, or denoised ones in memory.

    Group g's are those from `start[g]` to `start[g + 1]` (int64 [G + 1]), their responses numbered within the group.
    """

    start: np.ndarray
    strength: np.ndarray  # float32 [E], nan where there is none
    identical: np.ndarray  # bool [E]


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges(EdgeColumns[np.ndarray]):
    """All E edges of a table and the lengths of its R responses.

    Responses are numbered through the table; `group` (int64 [E]) is the row of the table; `length` (int64 [R]) counts
    the tokens of each response alone, from where its prompt ends.
    """

    group: np.ndarray
    length: np.ndarray
