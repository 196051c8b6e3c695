"""Plots of what watches a policy: gold against KL and against the reward, and the members of an ensemble."""

from itertools import count, takewhile

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmfast.report.curves import last_of, smooth, span_of, step_axis
from rmfast.report.plots import Plot, Theme, headroom
from rmfast.report.run_folder import Floats, Row, Run, column

AGAINST = (("kl", "KL of an answer (nats)"), ("reward", "Reward"))
FEW = 3  # members whose spread is drawn, and who are named


def mark_step(axes: Axes, step: float | None, theme: Theme) -> None:
    """A line at a step, where there is one to be marked."""
    if step is not None:
        axes.axvline(step, color=theme.ink, linestyle="--", linewidth=1)


def gold_plot(run: Run, began: float | None) -> Plot | None:
    """Gold of the evaluations against their KL and against their reward; None below two evaluations with gold.

    Args:
        began: the step of the evaluation at which a collapse began; None for none.
    """
    sets = {name: [row for row in rows if np.isfinite(column([row], "gold"))[0]] for name, rows in run.evals.items()}
    name, rows = next(((name, rows) for name, rows in sets.items() if len(rows) > 1), ("", []))
    if not rows:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, (key, label) in zip((left, right), AGAINST, strict=True):
            _path(axes, rows, key, theme, began)
            axes.set_xlabel(label)
        left.set_ylabel("Gold")

    gold = column(rows, "gold")
    title = f"Gold on {name}: {gold[0]:.3g} first, {gold.max():.3g} at its highest, {gold[-1]:.3g} last"
    note = "Each evaluation with its 95 % interval; the line goes from one to the next, and the square is the last. "
    note += "Reward that is won while gold falls is not quality."
    return Plot("gold", title, note + (" The star: where the collapse begins." if began is not None else ""), draw)


def _path(axes: Axes, rows: list[Row], key: str, theme: Theme, began: float | None) -> None:
    x, gold, low, high = (column(rows, name) for name in (key, "gold", "gold_low", "gold_high"))
    axes.plot(x, gold, color=theme.first, marker="o", markersize=4, linewidth=1)
    axes.vlines(x, low, high, color=theme.first, alpha=0.5)
    axes.plot(x[-1:], gold[-1:], color=theme.second, marker="s", markersize=7)
    if began is not None:
        here = column(rows, "step") == began
        axes.plot(x[here], gold[here], color=theme.second, marker="*", markersize=13, linestyle="")


def members_plot(run: Run, began: float | None) -> Plot | None:
    """How each member's rewards rise, and how far the members disagree; None of one reward model alone.

    Args:
        began: as in `gold_plot`.
    """
    scores = [column(run.train, f"member_{member}/scores") for member in _members(run)]
    if not scores:
        return None
    spreads = [column(run.train, f"member_{member}/scores_std") for member in range(len(scores))]
    rises = [_rise(values, spread) for values, spread in zip(scores, spreads, strict=True)]

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        step = column(run.train, "step")
        span, colours = span_of(step), (theme.first, theme.second, theme.third, *theme.sets)
        for member, (rise, width) in enumerate(rises):
            colour, few = colours[member % len(colours)], len(rises) <= FEW
            upper.plot(step, smooth(rise, span), color=colour, label=f"member {member}" if few else "")
            if few:
                upper.fill_between(step, rise - width, rise + width, color=colour, alpha=0.12, linewidth=0)
        lower.plot(step, smooth(column(run.train, "disagreement"), span), color=theme.first)
        for axes in (upper, lower):
            mark_step(axes, began, theme)
        upper.set_ylabel("Rise (std)")
        if len(rises) <= FEW:
            headroom(upper)
            upper.legend(loc="upper right")
        step_axis(lower, "Disagreement")

    last = [last_of(rise) for rise, _ in rises]
    title = f"Members' rewards at the end: {min(last):+.2g} to {max(last):+.2g} std"
    note = "From the first step on, in standard deviations of its answers; bands: those of each step. "
    note += "Below: how far the members' scores of an answer are apart, as a standard deviation."
    return Plot("members", title, note, draw)


def _members(run: Run) -> list[int]:
    """Numbers of the members that steps have scores of."""
    names = {key for row in run.train for key in row}
    return list(takewhile(lambda member: f"member_{member}/scores" in names, count()))


def _rise(scores: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Scores less the first, and their spread, in units of the first step's spread."""
    first = np.flatnonzero(np.isfinite(scores))[:1]
    unit = float(spread[first][0]) if first.size and spread[first][0] > 0 else 1.0
    return (scores - (scores[first][0] if first.size else 0.0)) / unit, spread / unit
