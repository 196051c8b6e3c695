"""Correlations over the last axis, in numpy: Pearson's, Spearman's (mean ranks of ties) and Kendall's tau-b."""

from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike

from rmfast.evaluation.diagnostics.resample import Figure, Indices, by_prompt, of_sums
from rmfast.evaluation.metrics import SEED, Floats

PERMUTATIONS = 10_000


def ranks(values: ArrayLike) -> Floats:
    """Ranks from 1 of values [n]; equal ones share their mean."""
    _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)]


def ranks_within(values: Floats, group: Indices) -> Floats:
    """Ranks of values [n] among those of their group [n], from 0 (the least) to 1; 1/2 for one alone."""
    level = np.unique(values, return_inverse=True)[1].reshape(-1)
    size = np.bincount(group)
    inside = ranks(group * (level.max(initial=0) + 1) + level) - 1 - (np.cumsum(size) - size)[group]
    return np.where(size[group] > 1, inside / np.maximum(size[group] - 1, 1), 0.5)


def centred(values: Floats, group: Indices) -> Floats:
    """Values [n] less the mean of their group [n]."""
    return values - (np.bincount(group, values) / np.maximum(np.bincount(group), 1))[group]


@np.errstate(invalid="ignore", divide="ignore")
def pearson(x: ArrayLike, y: ArrayLike) -> Floats:
    """[..., n] -> [...]; nan without spread."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    spread = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.asarray(np.where(spread > 1e-300, (a * b).sum(-1) / spread, np.nan))


def spearman(x: ArrayLike, y: ArrayLike) -> Floats:
    """[..., n] -> [...]."""
    return pearson(*(np.apply_along_axis(ranks, -1, np.asarray(v, dtype=np.float64)) for v in (x, y)))


@np.errstate(invalid="ignore", divide="ignore")
def kendall(x: ArrayLike, y: ArrayLike) -> Floats:
    """tau-b, [..., n] -> [...], by all pairs: for small n."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    a, b = (np.sign(v[..., :, None] - v[..., None, :]) for v in (a, b))
    spread = np.sqrt((a * a).sum((-1, -2)) * (b * b).sum((-1, -2)))
    return np.asarray(np.where(spread > 0, (a * b).sum((-1, -2)) / spread, np.nan))


def permutation_p(x: ArrayLike, y: ArrayLike) -> float:
    """Share of orders of y [n] in which |tau-b| is at least as large as here: all n! orders up to n = 7, else seeded
    random ones. Its least value is 2 / n! without ties: 1/3 for three values."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    seen = abs(kendall(a, b))
    if not np.isfinite(seen):
        return float("nan")
    if factorial(b.size) <= PERMUTATIONS:
        return float(np.mean(np.abs(kendall(a, b[np.array(list(permutations(range(b.size))))])) >= seen - 1e-12))
    generator = np.random.default_rng(SEED)
    hits = [abs(kendall(a, generator.permutation(b))) >= seen - 1e-12 for _ in range(PERMUTATIONS)]
    return float((1 + np.sum(hits)) / (1 + PERMUTATIONS))


def correlation(x: Floats, y: Floats, prompt: Indices, prompts: int, *, within: bool = False) -> Figure:
    """Pearson's of rows [n] with a bootstrap over their prompts; within: of what is centred by prompt already."""
    if not x.size:
        return Figure(np.nan)
    a, b = (x, y) if within else (x - x.mean(), y - y.mean())
    one = np.zeros_like(a) if within else np.ones_like(a)
    return of_sums(_of_moments, by_prompt(np.stack((one, a, b, a * a, b * b, a * b), 1), prompt, prompts))


def _of_moments(sums: Floats) -> Floats:
    n, a, b, aa, bb, ab = np.moveaxis(sums, -1, 0)
    n = np.where(n > 0, n, np.inf)  # within: means are 0
    spread = np.sqrt(np.maximum(aa - a * a / n, 0) * np.maximum(bb - b * b / n, 0))
    return np.asarray(np.where(spread > 1e-12 * np.sqrt(aa * bb), (ab - a * b / n) / spread, np.nan))
