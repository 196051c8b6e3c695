"""Accuracy against the number of votes, for judges and ensembles alike. Pure numpy.

Votes of an item are [E, k]: above 0 for the edge's better answer, below 0 against, 0 or nan neither. An item is right
where votes drawn add up above 0 on each of its edges. Of k votes, n can be drawn without replacement in C(k, n) ways;
the accuracy at n is the mean over all of them, exact up to LIMIT ways and over LIMIT seeded draws beyond. All edges
use the same draw, as an ensemble's members are the same on every edge. Whether few of the k votes would have done is
what the curve tells; at n = k it is the accuracy that all votes together have. Even n may tie, and ties lose.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import comb
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LIMIT = 2000


class HasPart(Protocol):
    """An item of a suite, or what a file holds of it."""

    @property
    def part(self) -> str: ...


def vote_curve(votes: Sequence[ArrayLike], *, seed: int = 0) -> Floats:
    """Expected share of items that are right by n of their k votes, [k], n from 1.

    Args:
        votes: of each item, [E, k].

    Raises:
        ValueError: no items, or items with different k.
    """
    arrays = [np.nan_to_num(np.asarray(of_item, dtype=np.float64), nan=0.0) for of_item in votes]
    if not arrays or any(v.ndim != 2 or v.shape[1] != arrays[0].shape[1] or not v.size for v in arrays):
        raise ValueError("want votes [E, k] of at least one item, with one k and E of at least 1")
    every = np.concatenate(arrays)
    starts = np.cumsum([0, *map(len, arrays[:-1])])
    k = every.shape[1]
    generator = np.random.default_rng(seed)
    curve = np.empty(k)
    for n in range(1, k + 1):
        right = 0.0
        draws = _draws(k, n, generator)
        for some in np.array_split(draws, -(-len(draws) * len(every) // 10_000_000)):  # bounds the memory
            won = (every @ some.T) > 0  # [edges, draws]
            right += np.logical_and.reduceat(won, starts, axis=0).sum() / len(arrays)
        curve[n - 1] = right / len(draws)
    return curve


def vote_curves(
    items: Iterable[HasPart], votes: Iterable[ArrayLike], *, both: bool = False, seed: int = 0
) -> dict[str, list[float]]:
    """`vote_curve` of each part's items, by part; items without edges do not count.

    Args:
        votes: of each item, [E, k]. both: they are answers that were asked for in both orders (see `paired`).
    """
    parts: dict[str, list[ArrayLike]] = {}
    for item, of_item in zip(items, votes, strict=True):
        if len(np.asarray(of_item)):
            parts.setdefault(item.part, []).append(paired(of_item) if both else of_item)
    return {part: vote_curve(of_part, seed=seed).tolist() for part, of_part in parts.items()}


def member_votes(gaps: ArrayLike) -> Floats:
    """Votes [E, M] of an ensemble's members for an item's edges, of their gaps r(better) - r(worse) [M, E]."""
    return np.sign(np.asarray(gaps, dtype=np.float64)).T


def paired(votes: ArrayLike) -> Floats:
    """Votes [E, k] of answers [E, 2 k] that were asked for in both orders: the sum of each vote's two."""
    v = np.nan_to_num(np.asarray(votes, dtype=np.float64), nan=0.0)
    return v[:, 0::2] + v[:, 1::2]


def _draws(k: int, n: int, generator: np.random.Generator) -> Floats:
    """Which of k votes are drawn, [draws, k] of 0 and 1."""
    if comb(k, n) <= LIMIT:
        places = np.array(list(combinations(range(k), n)))
    else:
        places = np.argsort(generator.random((LIMIT, k)), axis=1)[:, :n]
    draws = np.zeros((len(places), k))
    np.put_along_axis(draws, places, 1.0, axis=1)
    return draws
