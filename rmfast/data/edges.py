"""Preferences of a row: which response is better than which, and the numbers that come with it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmfast.data.columns import EDGE_COLUMNS
from rmfast.data.denoise import LARGEST_MARGIN
from rmfast.data.example import BAD_NUMBER, CONTRADICTION, WRONG_TYPE, Edge, bad
from rmfast.errors import shown

Pair = tuple[int, int]
"""Places of the better and of the worse response."""

_MAX = float(np.finfo(np.float32).max)
RANGES = dict.fromkeys(EDGE_COLUMNS, (-_MAX, _MAX)) | {
    "margin": (-LARGEST_MARGIN, LARGEST_MARGIN),
    "target": (0.0, 1.0),
    "weight": (0.0, 1e9),
    "strength_std": (0.0, _MAX),
}
"""Smallest and largest number of each column."""


def ranked_pairs(ours: dict[str, Any], count: int) -> list[Pair]:
    """The preferences among `count` responses that edges, ranks, scores or, without any, their order give.

    Edges may be some of those that ranks and scores give.

    Raises:
        BadRow: a wrong type or number, or two of the columns contradict each other.
    """
    orders = {name: _ordered(keys) for name, keys in _keys(ours, count).items()}
    if len({frozenset(pairs) for pairs in orders.values()}) > 1:
        bad(CONTRADICTION, "`ranks` and `scores` order the responses differently")
    order = next(iter(orders.values()), None)
    if "edges" not in ours:
        return _ordered([float(place) for place in range(count)]) if order is None else order
    pairs = [_index_pair(pair, count) for pair in _list(ours, "edges")]
    if order is not None:
        check_pairs(pairs, order, "`edges`", f"`{next(iter(orders))}`")
    return pairs


def pair_order(ours: dict[str, Any], count: int) -> dict[str, list[Pair]]:
    """The preferences that edges beside a pair give, and ranks and scores that are lists of one number an answer."""
    if "edges" not in ours and "ranks" not in ours and "scores" not in ours:
        return {}
    edges = {"edges": [_index_pair(pair, count) for pair in _list(ours, "edges")]} if "edges" in ours else {}
    lists = {name: ours[name] for name in ("ranks", "scores") if isinstance(ours.get(name), list)}
    ours = {name: value for name, value in lists.items() if len(value) == count}
    return edges | {name: _ordered(keys) for name, keys in _keys(ours, count).items()}


def check_pairs(pairs: Sequence[Pair], order: Sequence[Pair], what: str, against: str) -> None:
    """Refuse preferences that an order does not have.

    Raises:
        BadRow: one that it has not.
    """
    known = set(order)
    if wrong := next((pair for pair in pairs if pair not in known), None):
        bad(
            CONTRADICTION,
            f"{what} prefer response {wrong[0]} to response {wrong[1]} and {against} do not (counted from 0); "
            f"data.columns (--columns) NAME=ignore leaves a column out",
        )


def _keys(ours: dict[str, Any], count: int) -> dict[str, list[float]]:
    """Lower is better."""
    out = {}
    if "ranks" in ours:
        out["ranks"] = _numbers(ours, "ranks", count)
    if "scores" in ours:
        out["scores"] = [-score for score in _numbers(ours, "scores", count)]
    return out


def _ordered(keys: Sequence[float]) -> list[Pair]:
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if keys[a] < keys[b]]


def _index_pair(pair: Any, count: int) -> Pair:
    ok = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < count for i in pair)
    if not ok or pair[0] == pair[1]:
        bad(WRONG_TYPE, f"`edges` holds {shown(pair)}, not two different places in a list of {count} responses")
    return pair[0], pair[1]


def _list(ours: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(ours[name], list):
        bad(WRONG_TYPE, f"`{name}` is not a list but {type(ours[name]).__name__}")
    return ours[name]


def _number(value: Any, name: str, low: float = -_MAX, high: float = _MAX) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        bad(WRONG_TYPE, f"`{name}` holds {shown(value)}, which is not a number")
    if not low <= value <= high:  # also catches nan, and integers that no float can hold
        bad(BAD_NUMBER, f"`{name}` holds {shown(value)}, not a number from {low:g} to {high:g}")
    return float(value)


def _numbers(ours: dict[str, Any], name: str, count: int) -> list[float]:
    values = _list(ours, name)
    if len(values) != count:
        bad(WRONG_TYPE, f"`{name}` holds {len(values)} numbers for {count} responses")
    return [_number(value, name) for value in values]


def read_edges(ours: dict[str, Any], pairs: Sequence[Pair], strengths: bool) -> tuple[tuple[Edge, ...], bool]:
    """The edges with their optional columns, and whether their weight came one per edge."""
    if RANGES.keys().isdisjoint(ours):
        return tuple([Edge(better, worse) for better, worse in pairs]), False
    columns: list[dict[str, float]] = [{} for _ in pairs]
    for name, (low, high) in RANGES.items():
        if name not in ours or (name.startswith("strength") and not strengths):
            continue
        values = ours[name] if isinstance(ours[name], list) else [ours[name]] * len(pairs)
        if len(values) != len(pairs):
            bad(WRONG_TYPE, f"`{name}` holds {len(values)} numbers for {len(pairs)} edges")
        for column, value in zip(columns, values, strict=True):
            if value is not None:
                column[name] = _number(value, name, low, high)
    edges = tuple(Edge(better, worse, **column) for (better, worse), column in zip(pairs, columns, strict=True))
    return edges, isinstance(ours.get("weight"), list)
