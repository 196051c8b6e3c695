"""Metrics of per-response scores against preference edges: pure numpy, float64, no models.

Shapes: R responses and E edges; `better` and `worse` index the responses. One rule holds for broken scores: they are
counted as "nonfinite", an edge that touches one is lost, and every mean that one enters is NaN, never a number.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

BINS = 10  # of the calibration curve
RESAMPLES = 10_000  # of the cluster bootstrap
SEED = 0  # fixed, so that the same scores always print the same interval
Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Reliability:
    """A calibration curve of B bins, from the least to the most probable. All arrays are [B]."""

    predicted: Floats  # mean predicted probability
    observed: Floats  # share of comparisons that were won
    low: Floats  # 95 % Wilson interval of `observed`
    high: Floats
    count: NDArray[np.int64]  # comparisons in the bin


@np.errstate(invalid="ignore", over="ignore")  # a broken or huge score ends as NaN or inf, not as a warning
def pairwise_metrics(
    scores: ArrayLike,
    better: ArrayLike,
    worse: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    margin: ArrayLike = 0.0,
    target: ArrayLike = 1.0,
    lengths: ArrayLike | None = None,
    center: float = 0.0,
    groups: ArrayLike | None = None,
) -> dict[str, float | int | str]:
    """How well scores [R] rank the edges (better, worse) [E]. What nothing defines (no edge, no spread) is NaN.

    Args:
        scores: one score a response [R].
        better, worse: responses of each edge, int [E].
        weight, margin, target: as in `ranking_loss`, scalars or [E]; they enter the loss alone.
        lengths: tokens of each response [R]; without them the keys of length are absent.
        center: coefficient of the loss's centering term.
        groups: prompt group of each edge, int [E]. Where some edges share a group, intervals come from a bootstrap that
            draws whole groups; otherwise edges count as independent and the interval is Wilson's.

    Returns:
        responses, nonfinite, edges, ties: counts.
        accuracy, accuracy_low, accuracy_high: unweighted share of edges with s_better > s_worse, ties lose.
        loss: weighted mean of the ranking loss. margin: mean of s_better - s_worse.
        calibration_error: of sigmoid(s_better - s_worse), see `reliability`.
        mean_reward, std_reward, min_reward, max_reward: over responses. mean_better, mean_worse: over edges.
        longer_wins, shorter_wins: accuracy of scoring by length, ties lose for both.
        baseline ("longer wins" or "shorter wins", the better), baseline_accuracy, baseline_low, baseline_high.
        length_correlation: Pearson's, of score with length over responses.

    Raises:
        ValueError: shapes differ, or an index points outside the responses.
    """
    s, b, w = _checked(scores, better, worse)
    gap = s[b] - s[w]
    won = gap > 0  # false for NaN, so that a broken score cannot win
    group = None if groups is None else np.asarray(groups)
    if group is not None and group.shape != b.shape:
        raise ValueError(f"groups has shape {group.shape}, edges have {b.shape}")
    low, high = accuracy_interval(won, group)
    metrics: dict[str, float | int | str] = {
        "responses": s.size,
        "nonfinite": int(np.isnan(s).sum()),
        "edges": b.size,
        "ties": int((gap == 0).sum()),
        "accuracy": _mean(won),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": _ranking_loss(s[b], s[w], weight, margin, target, center),
        "margin": _mean(gap),
        "calibration_error": calibration_error(s, b, w),
        "mean_reward": _mean(s),
        "std_reward": float(np.std(s)) if s.size else np.nan,
        "min_reward": float(np.min(s)) if s.size else np.nan,
        "max_reward": float(np.max(s)) if s.size else np.nan,
        "mean_better": _mean(s[b]),
        "mean_worse": _mean(s[w]),
    }
    if lengths is not None:
        length = np.asarray(lengths, dtype=np.float64)
        if length.shape != s.shape:
            raise ValueError(f"lengths has shape {length.shape}, scores have {s.shape}")
        metrics |= _length_metrics(s, length, b, w, group)
    return metrics


def reliability(scores: ArrayLike, better: ArrayLike, worse: ArrayLike, bins: int = BINS) -> Reliability:
    """Calibration curve of sigmoid(s_first - s_second) as the probability that the first reply is the better one.

    An edge has no order: listed (better, worse), every label would be 1 and a model that always says
    "certain" would look calibrated. So both orders are asked: the 2 E comparisons have labels 1 and 0 in equal number,
    a constant score is calibrated at 1/2, and confidence must be earned. The bins hold equal numbers of comparisons
    (fewer than `bins` where there are not enough); equal predictions share their labels' mean, so that the order of
    rows cannot matter. Edges with a non-finite score are left out.
    """
    s, b, w = _checked(scores, better, worse)
    gap = s[b] - s[w]
    gap = gap[np.isfinite(gap)]
    logit, place = np.unique(np.concatenate([gap, -gap]), return_inverse=True)
    label = np.repeat([1.0, 0.0], gap.size)
    shared = np.bincount(place, label, logit.size) / np.maximum(np.bincount(place, minlength=logit.size), 1)
    order = np.sort(place)
    predicted, observed = _sigmoid(logit)[order], shared[order]
    parts = [part for part in np.array_split(np.arange(order.size), bins) if part.size]
    count = np.array([part.size for part in parts], dtype=np.int64)
    mean = np.array([observed[part].mean() for part in parts], dtype=np.float64)
    band = np.array([wilson(m * n, n) for m, n in zip(mean, count, strict=True)], dtype=np.float64).reshape(-1, 2)
    return Reliability(
        np.array([predicted[part].mean() for part in parts], dtype=np.float64), mean, band[:, 0], band[:, 1], count
    )


def calibration_error(scores: ArrayLike, better: ArrayLike, worse: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error in [0, 1]: the mean of |predicted - observed| over `reliability`, by mass.

    Few comparisons a bin bias it upwards. NaN without edges and where an edge has a non-finite score.
    """
    s, b, w = _checked(scores, better, worse)
    if not b.size or np.isnan(s[b] + s[w]).any():
        return float("nan")
    curve = reliability(s, b, w, bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.count))


def wilson(wins: float, total: float) -> Interval:
    """Wilson's 95 % interval of a proportion; (NaN, NaN) where nothing was counted."""
    if total <= 0:
        return float("nan"), float("nan")
    share, square = wins / total, Z95 * Z95
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z95 / (1 + square / total) * np.sqrt(max(share * (1 - share), 0.0) / total + square / (4 * total * total))
    # Rounding may push the ends past the observed share (at 0 and at 1), which the interval holds by definition.
    return float(np.clip(middle - half, 0.0, share)), float(np.clip(middle + half, share, 1.0))


def accuracy_interval(won: NDArray[np.bool_], groups: NDArray[np.generic] | None = None) -> Interval:
    """95 % interval of the share of won edges [E]: Wilson's, or a bootstrap over groups [E] where edges share one."""
    if groups is None or not won.size:
        return wilson(won.sum(), won.size)
    _, place = np.unique(groups, return_inverse=True)
    sizes = np.bincount(place)
    if sizes.size == won.size:
        return wilson(won.sum(), won.size)
    # Groups with the same (wins, edges) are alike: drawing how often each kind occurs is the same bootstrap as drawing
    # groups one by one, and costs kinds instead of groups.
    kinds, occurs = np.unique(np.stack([np.bincount(place, won), sizes]), axis=1, return_counts=True)
    draws = np.random.default_rng(SEED).multinomial(sizes.size, occurs / sizes.size, size=RESAMPLES)
    low, high = np.quantile((draws @ kinds[0]) / (draws @ kinds[1]), [0.025, 0.975])
    if high - low < 1e-12:  # all groups alike (all won, or a single group): resampling is blind, groups are the sample
        return wilson(won.mean() * sizes.size, sizes.size)
    return float(low), float(high)


def _ranking_loss(
    better: Floats, worse: Floats, weight: ArrayLike | None, margin: ArrayLike, target: ArrayLike, center: float
) -> float:
    """Weighted mean over edges [E] of softplus(-d) + (1 - target) d + center (better + worse)^2, d less the margin."""
    d = better - worse - np.asarray(margin, dtype=np.float64)
    edge = np.logaddexp(0.0, -d) + (1 - np.asarray(target, dtype=np.float64)) * d
    if center:  # only then: the square of a huge score overflows, and 0 times infinity is NaN
        edge = edge + center * (better + worse) ** 2
    if edge.shape != better.shape:
        raise ValueError(f"margin or target has another shape than the edges' {better.shape}")
    mass = np.broadcast_to(np.asarray(1.0 if weight is None else weight, dtype=np.float64), edge.shape)
    total = mass.sum()
    return float((mass * edge).sum() / total) if total > 0 else float("nan")


def _length_metrics(
    s: Floats, length: Floats, b: NDArray[np.intp], w: NDArray[np.intp], group: NDArray[np.generic] | None
) -> dict[str, float | int | str]:
    """Accuracies of ranking by length alone, and how far the scores follow length."""
    rules = {"longer wins": length[b] > length[w], "shorter wins": length[b] < length[w]}
    name = max(rules, key=lambda rule: rules[rule].sum())
    low, high = accuracy_interval(rules[name], group)
    spread = s.size > 0 and np.ptp(s) > 0 and np.ptp(length) > 0
    return {
        "longer_wins": _mean(rules["longer wins"]),
        "shorter_wins": _mean(rules["shorter wins"]),
        "baseline": name,
        "baseline_accuracy": _mean(rules[name]),
        "baseline_low": low,
        "baseline_high": high,
        "length_correlation": float(np.corrcoef(s, length)[0, 1]) if spread else float("nan"),
    }


def _checked(
    scores: ArrayLike, better: ArrayLike, worse: ArrayLike
) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Scores in float64 with every non-finite one as NaN, and edge indices inside their bounds."""
    s = np.asarray(scores, dtype=np.float64)
    b, w = (np.asarray(index, dtype=np.intp) for index in (better, worse))
    if s.ndim != 1 or b.ndim != 1 or b.shape != w.shape:
        raise ValueError(f"want scores [R], better [E], worse [E]; got {s.shape}, {b.shape}, {w.shape}")
    if b.size and (min(b.min(), w.min()) < 0 or max(b.max(), w.max()) >= s.size):
        raise ValueError(f"an edge points outside the {s.size} responses")
    return np.where(np.isfinite(s), s, np.nan), b, w


def _mean(values: Floats | NDArray[np.bool_]) -> float:
    return float(np.mean(values, dtype=np.float64)) if values.size else float("nan")


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))  # no overflow at either end
