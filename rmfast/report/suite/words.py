"""Figures of a suite's page as ready HTML: shares, differences, p; sections and folds."""

from collections.abc import Sequence

import numpy as np

from rmfast.evaluation.diagnostics.resample import Figure, Share
from rmfast.report.suite.look import points, span


def section(title: str, words: str, blocks: Sequence[str], others: str = "The other parts") -> str:
    """A heading, what it means, the first block, and the others folded."""
    if not blocks:
        return ""
    more = fold(others, "".join(blocks[1:])) if len(blocks) > 1 else ""
    return f"<h2>{title}</h2>{words}{blocks[0]}{more}"


def fold(title: str, body: str) -> str:
    return f'<details class="card"><summary>{title}</summary>{body}</details>'


def share(figure: Figure | Share | None, counted: bool = False) -> str:
    """A share in per cent with its interval and, where asked, its count."""
    if not figure or not np.isfinite(figure.value):
        return "–"
    count = f" of {figure.count:,}" if counted and isinstance(figure, Share) else ""
    return f"{points(figure.value)}<small>{span(figure)}{count}</small>"


def difference(figure: Figure | None) -> str:
    """A difference in points with its sign; bold where its interval lies on one side of 0."""
    if figure is None or not np.isfinite(figure.value):
        return "–"
    value, low, high = figure.value, figure.low, figure.high
    words = f"{100 * value:+.1f}"
    ends = f"<small>[{100 * low:+.1f}, {100 * high:+.1f}]</small>" if np.isfinite(low + high) else ""
    return (f"<b>{words}</b>" if figure.side else words) + ends


def real(figure: Figure | None) -> str:
    """An estimate that is no share, with its interval."""
    if figure is None or not np.isfinite(figure.value):
        return "–"
    value, low, high = figure.value, figure.low, figure.high
    ends = f"<small>[{low:+.2f}, {high:+.2f}]</small>" if np.isfinite(low + high) else ""
    return f"{value:+.2f}{ends}"


def plain(value: float, signed: bool = False) -> str:
    return "–" if not np.isfinite(value) else f"{value:+.2f}" if signed else f"{value:.2f}"


def p_value(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.3f}" if value >= 0.001 else "&lt; 0.001"


def reach(values: Sequence[float], margin: float) -> tuple[float, float]:
    """Least and greatest finite value with a margin of the span around them."""
    known = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    pad = max(margin * (max(known) - min(known)), margin)
    return min(known) - pad, max(known) + pad
