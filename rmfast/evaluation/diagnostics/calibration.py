"""Whether sigmoid of a reward's gap is the probability of being right: by part, from rewards alone."""

from dataclasses import dataclass

import numpy as np

from rmfast.evaluation.diagnostics.table import Table
from rmfast.evaluation.metrics import Floats, calibration_error, reliability


@dataclass(frozen=True)
class CalibrationBin:
    """Comparisons of like probability: the mean prediction, the observed share and its 95 % interval."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Of a part's edges: calibration error (ECE), the temperature at which sigmoid(gap / temperature) fits best (above
    1: too sure; infinite: the gaps tell nothing), and the curve."""

    edges: int
    error: float
    temperature: float
    curve: list[CalibrationBin]


def calibration(table: Table) -> dict[str, Calibration] | None:
    """Calibration by part; None without rewards.

    Curve and error are those of `metrics.reliability`, which asks every edge in both orders. Edges without a finite
    gap are left out; without any, error and temperature are nan.
    """
    if table.reward is None:
        return None
    out = {}
    for place, name in enumerate(table.parts):
        gap = table.gap[(table.part == place) & np.isfinite(table.gap)]
        # Each edge as two responses, the better one with the gap for its reward.
        scores, better = np.stack((gap, 0 * gap), 1).reshape(-1), 2 * np.arange(gap.size)
        curve = reliability(scores, better, better + 1)
        columns = (curve.predicted, curve.observed, curve.low, curve.high, curve.count)
        out[name] = Calibration(
            edges=int(gap.size),
            error=calibration_error(scores, better, better + 1),
            temperature=temperature(gap),
            curve=[CalibrationBin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)],
        )
    return out


def temperature(gap: Floats) -> float:
    """T at which sigmoid(gap / T) makes the labels likeliest (Guo et al., 2017, arXiv 1706.04599), of gaps [E].

    Infinite where the gaps tell nothing or the wrong thing (no better than T without bound), 0 where every edge is won
    (no worse than T towards 0), nan without a gap other than 0.
    """
    g = gap[gap != 0]
    if not g.size:
        return float("nan")
    if (g > 0).all():
        return 0.0
    if g.sum() <= 0:  # the likelihood is concave in 1 / T and falls from 1 / T = 0 on
        return float("inf")
    g = g / np.abs(g).max()
    low, high = 0.0, 1.0
    while _slope(g, high) > 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(g, middle) > 0 else (low, middle)
    return float(np.abs(gap).max() / high)


def _slope(gap: Floats, inverse: float) -> float:
    """Derivative of the mean of log sigmoid(gap inverse) by `inverse`."""
    return float(np.mean(gap * np.exp(-np.logaddexp(0.0, gap * inverse))))
