"""Length bias: how far a model's choices follow length, and how often it is right with length held fixed.

Accuracy alone does not tell a model that reads from one that counts: in most data the longer answer is the better one
more often than not. Three estimates hold length fixed:

- balanced: the mean of the accuracies where the better answer is the longer one and where it is the shorter one; who
  chooses by length alone gets 1/2.
- matched: the same within strata of |length difference|, so that both sides also differ by as much; strata count by
  their edges, one that lacks a side does not.
- at equal length: P(win) = sigmoid(a + b tanh(d / s)), d the better answer's length less the worse one's, s the root
  mean square of d, fitted to the edges won (1) and lost (0); sigmoid(a) is the accuracy at d = 0. The length term is
  that of length-controlled AlpacaEval (Dubois et al., 2024, arXiv 2404.04475), which sets it to 0 likewise; an edge has
  no order, so that s is about 0 and not about the mean. The small ridge, which keeps separable data finite, is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rmfast.evaluation.diagnostics.correlate import centred, correlation, ranks, ranks_within
from rmfast.evaluation.diagnostics.resample import Figure, Indices, Share, figure, of_sums, resampled, shares, tallies
from rmfast.evaluation.diagnostics.table import Table
from rmfast.evaluation.metrics import Floats

Flags = NDArray[np.bool_]
QUANTILES = 10
STRATA = 10
BINS = 64  # of tanh(d / s), for the bootstrap of the logistic model alone
RIDGE = 0.01  # of (a^2 + b^2) / 2 against a log-likelihood summed over edges


@dataclass(frozen=True)
class LengthBin:
    """Accuracy of edges whose length(better) - length(worse) is from `start` to `end`."""

    start: Annotated[float, Field(alias="from")]
    end: Annotated[float, Field(alias="to")]
    count: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LengthBias:
    """How a part's edges follow length.

    Attributes:
        by_side: accuracy where the better answer is the "longer" one, the "shorter" one, and of the "same" length.
        by_difference: accuracy by quantiles of length(better) - length(worse), the least first.
        balanced, matched, at_equal_length: accuracies with length held fixed, see above. matched_share: edges in
            strata that count. length_effect: the fit's coefficient of tanh(difference / scale).
        gap_pearson, gap_spearman: correlation of the reward's gap with the difference.
        longer_wins, shorter_wins: accuracy of choosing by length alone.
        within_pearson, within_spearman: of reward with length within prompts, over all parts; None without rewards.
    """

    edges: int
    by_side: dict[str, Share]
    by_difference: list[LengthBin]
    balanced: Figure
    matched: Figure
    matched_share: float
    at_equal_length: Figure
    length_effect: Figure
    scale: float
    gap_pearson: Figure
    gap_spearman: Figure
    longer_wins: Share
    shorter_wins: Share
    within_pearson: Figure | None
    within_spearman: Figure | None


def length_bias(table: Table) -> dict[str, LengthBias]:
    """The bias by part, "all" first where there are several."""
    parts = {name: table.part == place for place, name in enumerate(table.parts)}
    if len(parts) > 1:
        parts = {"all": np.ones(table.gap.size, dtype=np.bool_)} | parts
    within = _within(table)
    return {name: _of_edges(table, rows, within) for name, rows in parts.items()}


def _of_edges(table: Table, rows: Flags, within: Sequence[Figure | None]) -> LengthBias:
    gap, d, prompt = table.gap[rows], table.length_gap[rows], table.prompt[rows]
    won, known = gap > 0, np.isfinite(gap)
    side = np.sign(d).astype(np.intp) + 1
    sides = shares(won, side, prompt, table.prompts, 3)
    balanced = tallies(prompt, side + 3 * won, table.prompts, 6)
    by_length = [shares(d * sign > 0, 0 * side, prompt, table.prompts, 1)[0] for sign in (1, -1)]
    moments = [(x[known], y[known]) for x, y in ((gap, d), (ranks(gap), ranks(d)))]
    pearson, spearman = (correlation(x, y, prompt[known], table.prompts) for x, y in moments)
    return LengthBias(
        edges=int(won.size),
        by_side=dict(zip(("shorter", "same", "longer"), sides, strict=True)),
        by_difference=_quantiles(d, won, prompt, table.prompts),
        balanced=of_sums(_balanced, balanced),
        **_matched(d, won, prompt, table.prompts),
        **_logistic(d, won, prompt, table.prompts),
        gap_pearson=pearson,
        gap_spearman=spearman,
        longer_wins=by_length[0],
        shorter_wins=by_length[1],
        within_pearson=within[0],
        within_spearman=within[1],
    )


def _within(table: Table) -> Sequence[Figure | None]:
    """Correlation of reward with length inside prompts, over all distinct responses: not of a part."""
    if table.reward is None:
        return None, None
    known = np.isfinite(table.reward)
    reward, length, owner = table.reward[known], table.length[known], table.owner[known]
    ranked = [ranks_within(v, owner) for v in (reward, length)]
    return [
        correlation(centred(x, owner), centred(y, owner), owner, table.prompts, within=True)
        for x, y in ((reward, length), ranked)
    ]


def _quantiles(d: Floats, won: Flags, prompt: Indices, prompts: int) -> list[LengthBin]:
    _, bins = np.unique(_bins(d, QUANTILES), return_inverse=True)
    bins = bins.reshape(-1)
    found = shares(won, bins, prompt, prompts, bins.max(initial=-1) + 1)
    inside = [d[bins == place] for place in range(len(found))]
    return [LengthBin(float(v.min()), float(v.max()), **vars(one)) for v, one in zip(inside, found, strict=True)]


def _bins(values: Floats, count: int) -> Indices:
    """Bins of equally many values [n], as far as equal values allow."""
    if not values.size:
        return np.empty(0, dtype=np.intp)
    return np.searchsorted(np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1])), values, side="left")


def _balanced(sums: Floats) -> Floats:
    """Of [..., 6]: lost and won, each with the better answer shorter, alike, longer."""
    lost, won = sums[..., :3], sums[..., 3:]
    shares = won / (lost + won)
    return np.asarray((shares[..., 0] + shares[..., 2]) / 2)


def _matched(d: Floats, won: Flags, prompt: Indices, prompts: int) -> dict[str, Any]:
    differ = d != 0
    stratum = _bins(np.abs(d[differ]), STRATA)
    cell = (stratum * 2 + (d[differ] > 0)) * 2 + won[differ]
    sums = tallies(prompt[differ], cell, prompts, STRATA * 4)

    def statistic(total: Floats) -> Floats:
        cells = total.reshape(*total.shape[:-1], STRATA, 2, 2)  # stratum, side, lost or won
        edges = cells.sum(-1)
        both = (edges > 0).all(-1)
        accuracy = np.where(both, (cells[..., 1] / np.maximum(edges, 1)).mean(-1), 0.0)
        weight = np.where(both, edges.sum(-1), 0.0)
        return np.asarray((accuracy * weight).sum(-1) / weight.sum(-1))

    sides = sums.sum(0).reshape(STRATA, 2, 2).sum(-1)
    kept = sides[(sides > 0).all(1)].sum()
    return {"matched": of_sums(statistic, sums), "matched_share": float(kept / d.size) if d.size else np.nan}


def _logistic(d: Floats, won: Flags, prompt: Indices, prompts: int) -> dict[str, Any]:
    scale = float(np.sqrt(np.mean(d * d))) if d.size else 0.0
    if not scale:
        return {"at_equal_length": figure(np.nan), "length_effect": figure(np.nan), "scale": scale}
    z = np.tanh(d / scale)
    a, b = fit_logistic(z, won.astype(np.float64), np.ones_like(z))
    # In a resample edges count in bins of z: thousands of fits would else pass over every edge.
    bins = np.unique(_bins(z, BINS), return_inverse=True)[1].reshape(-1)
    count = int(bins.max()) + 1
    middle = np.bincount(bins, z) / np.bincount(bins)
    sums = np.hstack([tallies(prompt, bins, prompts, count, w) for w in (won, np.ones_like(z))])
    drawn = resampled(sums) if prompts > 1 else sums[:0]
    many = fit_logistic(middle, drawn[:, :count], drawn[:, count:])
    return {
        "at_equal_length": figure(float(_sigmoid(a)), _sigmoid(many[0])),
        "length_effect": figure(float(b), many[1]),
        "scale": scale,
    }


def fit_logistic(z: Floats, wins: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Newton's fit of P(win) = sigmoid(a + b z) with a ridge.

    Args:
        z: [B]. wins, total: [..., B] edges won and edges at each z.

    Returns:
        a, b: [...].
    """
    a = np.zeros(wins.shape[:-1])
    b = np.zeros_like(a)
    for _ in range(100):
        p = _sigmoid(a[..., None] + b[..., None] * z)
        miss, curve = wins - total * p, total * p * (1 - p)
        ga, gb = miss.sum(-1) - RIDGE * a, (miss * z).sum(-1) - RIDGE * b
        aa, ab, bb = curve.sum(-1) + RIDGE, (curve * z).sum(-1), (curve * z * z).sum(-1) + RIDGE
        determinant = aa * bb - ab * ab
        da, db = (bb * ga - ab * gb) / determinant, (aa * gb - ab * ga) / determinant
        size = np.maximum(np.hypot(da, db), 1e-300)
        shrink = np.minimum(1.0, 2.0 / size)  # where nearly all is won, Newton's step overshoots
        a, b = a + shrink * da, b + shrink * db
        if not size.size or size.max() < 1e-9:
            break
    return a, b


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))
