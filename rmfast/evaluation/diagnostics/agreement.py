"""How far models agree on the same rows, which of two is better there, and rows that all of them get wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmfast.evaluation.combine import agreement as same_side
from rmfast.evaluation.diagnostics.correlate import pearson, ranks
from rmfast.evaluation.diagnostics.headline import Resamples
from rmfast.evaluation.diagnostics.resample import Figure, figure
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.suites.base import Path_
from rmfast.evaluation.suites.result import SuiteResult

NAMED = 50  # rows that all models lose and that are named


Matrix = list[list[float]]


@dataclass(frozen=True)
class PairedRows:
    """Rows that two models win: both, one alone, neither; p of McNemar's test (rows as independent)."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


@dataclass(frozen=True)
class ModelPair:
    """Accuracy of model a less that of b on the same rows, a < b their places: headline figures and parts by name."""

    a: int
    b: int
    headline: dict[str, Figure]
    parts: dict[str, Figure]
    rows: dict[str, PairedRows]


@dataclass(frozen=True)
class WrongCounts:
    """Rows of a part that no model wins, and how many there would be if errors were independent; that all win."""

    rows: int
    all_wrong: int
    expected: float
    all_right: int


@dataclass(frozen=True)
class WrongRow:
    """A row that no model wins, and each model's least gap."""

    label: str
    uid: str
    part: str
    path: Path_
    gaps: list[float]


@dataclass(frozen=True)
class AllWrong:
    """Rows that no model wins: by part, and by name those that are lost by most."""

    parts: dict[str, WrongCounts]
    rows: list[WrongRow]


@dataclass(frozen=True)
class Agreement:
    """How far M models agree, [M, M] each: share of edges on which two prefer the same side, Cohen's kappa of rows won,
    Spearman's of gaps; every pair of models; rows that all get wrong."""

    edges: Matrix
    kappa: Matrix
    spearman: Matrix
    pairs: list[ModelPair]
    all_wrong: AllWrong


def agreement(results: Sequence[SuiteResult], resamples: Sequence[Resamples]) -> Agreement:
    """The agreement of at least two results on the same rows."""
    gaps = np.array([[gap for item in result.items for gap in item.gaps] for result in results])
    won = np.array([[item.won for item in result.items] for result in results])
    parts = np.array([item.part for item in results[0].items])
    places = range(len(results))
    return Agreement(
        edges=same_side(gaps).tolist(),
        kappa=[[cohen_kappa(won[a], won[b]) for b in places] for a in places],
        spearman=[[_spearman(gaps[a], gaps[b]) for b in places] for a in places],
        pairs=[_pair(a, b, won, parts, resamples) for a in places for b in places if a < b],
        all_wrong=_all_wrong(results, won, parts),
    )


def cohen_kappa(one: Any, other: Any) -> float:
    """Cohen's (1960) kappa of two models' verdicts [n]: agreement beyond what their rates of winning give by chance.

    1 where they agree on all, nan where chance alone would (both win, or both lose, every row).
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (one, other))
    if not a.size:
        return float("nan")
    chance = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float(((a == b).mean() - chance) / (1 - chance)) if chance < 1 else float("nan")


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test: rows that one model alone wins, as tosses of a fair coin."""
    n, k = only_a + only_b, min(only_a, only_b)
    term = tail = 1  # C(n, 0); integers, since floats would overflow
    for i in range(k):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, (2 * tail * 10**15 // 2**n) / 10**15)


def _spearman(one: Floats, other: Floats) -> float:
    known = np.isfinite(one) & np.isfinite(other)
    return float(pearson(ranks(one[known]), ranks(other[known]))) if known.any() else float("nan")


def _pair(a: int, b: int, won: Any, parts: Any, resamples: Sequence[Resamples]) -> ModelPair:
    """Differences of a and b; the draws of both hit the same prompts, so that what is hard for both cancels."""
    one, other = resamples[a], resamples[b]
    headline = {}
    for name in one.headline:
        if name in other.headline:
            both = name in one.headline_drawn and name in other.headline_drawn
            drawn = one.headline_drawn[name] - other.headline_drawn[name] if both else None
            headline[name] = figure(one.headline[name] - other.headline[name], drawn)
    difference = {
        part: figure(one.cells[part, path] - other.cells[part, path], one.drawn[:, place] - other.drawn[:, place])
        for place, (part, path) in enumerate(one.cells)
        if not path
    }
    rows = {}
    for part in dict.fromkeys(parts.tolist()):
        x, y = won[a][parts == part], won[b][parts == part]
        only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
        same = int((x & y).sum()), int((~x & ~y).sum())
        rows[part] = PairedRows(same[0], only_a, only_b, same[1], mcnemar_p(only_a, only_b))
    return ModelPair(a, b, headline, difference, rows)


def _all_wrong(results: Sequence[SuiteResult], won: Any, parts: Any) -> AllWrong:
    """Rows that no model wins: too hard for all of them, or wrongly labelled.

    The first ones are those that are lost by most: by the mean over models of the least gap, each in units of the
    model's root mean square gap.
    """
    none = ~won.any(0)
    counts = {}
    for part in dict.fromkeys(parts.tolist()):
        inside = parts == part
        counts[part] = WrongCounts(
            rows=int(inside.sum()),
            all_wrong=int(none[inside].sum()),
            expected=float(inside.sum() * np.prod(1 - won[:, inside].mean(1))),
            all_right=int(won[:, inside].all(0).sum()),
        )
    least = np.array([[np.min(item.gaps) if item.gaps else np.nan for item in result.items] for result in results])
    square = np.nanmean(np.where(np.isfinite(least), least, np.nan) ** 2, axis=1, keepdims=True)
    lost = (least / np.sqrt(np.where(square > 0, square, 1.0))).mean(0)
    lost = np.where(np.isfinite(lost), lost, -np.inf)  # what some model could not judge comes first
    rows = np.flatnonzero(none)
    first = rows[np.argsort(lost[rows], kind="stable")][:NAMED]
    named = [(results[0].items[i], least[:, i].tolist()) for i in first.tolist()]
    return AllWrong(counts, [WrongRow(item.label, item.uid, item.part, item.path, gaps) for item, gaps in named])
