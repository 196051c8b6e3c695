"""What experiments, tables and plots share: planted flips, intervals over seeds, and a result as text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # 0.975 quantiles for 1, 2, ... degrees
Rows = list[dict[str, Any]]
Intervals = dict[tuple[Any, ...], tuple[float, float]]
Shown = dict[str, tuple[tuple[str, ...], tuple[str, str] | None, tuple[str, ...]]]
"""Of each experiment: what its rows are told apart by; the key that is compared with its base, seed by seed; values."""


def planted(count: int, share: float, seed: int) -> np.ndarray:
    """bool [count]: exactly that share, chosen by the seed."""
    out = np.zeros(count, dtype=bool)
    out[np.random.default_rng((seed, 7)).permutation(count)[: round(share * count)]] = True
    return out


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive has the higher score; ties count half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and the half width of its 95 % interval (Student's t)."""
    x = np.asarray(values)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    quantile = T[min(len(x) - 2, len(T) - 1)]
    return float(x.mean()), float(quantile * x.std(ddof=1) / np.sqrt(len(x)))


def by(rows: Rows, keys: Sequence[str], value: str) -> Intervals:
    """Interval of a value over the seeds, by some keys."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row[value])
    return {key: interval(values) for key, values in found.items()}


def paired(rows: Rows, within: Sequence[str], key: str, base: str, value: str) -> Intervals:
    """(*within, name) -> interval of the difference of `name` from `base`, seed by seed."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return (row["seed"], *(row[k] for k in within))

    at = {place(row): row[value] for row in rows if row[key] == base}
    less = [row | {value: row[value] - at[place(row)]} for row in rows if row[key] != base]
    return by(less, (*within, key), value)


def report(result: dict[str, Any], shown: Shown) -> str:
    """The figures of those experiments that a result has, as lines of text."""
    lines = [f"{result['pairs']:,} pairs ({result['test_pairs']:,} for testing), {len(result['seeds'])} seeds"]

    def table(title: str, found: Intervals) -> None:
        lines.append(f"\n{title}")
        for key, (mean, half) in found.items():
            name = "  ".join(f"{k:<12}" if isinstance(k, str) else f"{k:<5}" for k in key)
            lines.append(f"  {name} {mean:+.3f} +- {half:.3f}")

    for name, (within, compared, values) in shown.items():
        for value in values if name in result else ():
            keys = within if compared is None else (*within, compared[0])
            table(f"{name}: {value}", by(result[name], keys, value))
            if compared is not None:
                table(f"{name} less {compared[1]}: {value}", paired(result[name], within, *compared, value))
    return "\n".join(lines)
