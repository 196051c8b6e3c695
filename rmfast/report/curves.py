"""Curves over a run's steps, as all plots of runs draw them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from rmfast.report.plots import Theme, headroom
from rmfast.report.run_folder import Floats, Row, column

MARKERS = "osD^v"  # of held-out sets


def smooth(values: Floats, span: float) -> Floats:
    """Exponential moving average [N] over about `span` steps, unbiased at the start; NaN values are passed over."""
    decay, total, mass = 1 - 2 / (span + 1), 0.0, 0.0
    result = np.full_like(values, np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            total, mass = decay * total + (1 - decay) * value, decay * mass + (1 - decay)
            result[index] = total / mass
    return result


def curve(axes: Axes, step: Floats, values: Floats, smoothed: Floats, theme: Theme, label: str) -> None:
    """Each step faint, its moving average bold; a dot where there is one step only."""
    marker = "o" if np.isfinite(values).sum() == 1 else ""
    axes.plot(step, values, color=theme.first, alpha=0.25, linewidth=0.8)
    axes.plot(step, smoothed, color=theme.first, linewidth=2, marker=marker, label=label)


def held_out(axes: Axes, rows: Sequence[Row], key: str, theme: Theme, index: int, label: str) -> list[Floats]:
    """A held-out set's values over the steps with their 95 % intervals, where they have any; all that was drawn."""
    x, y, low, high = (column(rows, name) for name in ("step", key, f"{key}_low", f"{key}_high"))
    colour, marker = theme.sets[index % len(theme.sets)], MARKERS[index % len(MARKERS)]
    axes.plot(x, y, color=colour, marker=marker, markersize=5, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if len(rows) == 1:  # a band needs two points
        axes.vlines(x, low, high, color=colour, linewidth=2)
    return [y, low, high]


def span_of(step: Floats) -> float:
    return float(np.clip(step.size / 15, 1, 100))


def training_label(span: float) -> str:
    return f"training, mean of ~{span:.0f} steps" if span >= 2 else "training"


def last_of(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else float("nan")


def show(axes: Axes, seen: list[Floats], margin: float) -> None:
    """Range of y by what the reader compares: single steps of few pairs jump about and are cut off."""
    values = np.concatenate(seen)
    values = values[np.isfinite(values)]
    if values.size:
        axes.set_ylim(values.min() - margin, values.max() + margin)
    rows = 0.08 * len(axes.get_legend_handles_labels()[1])  # height of the legend, of the axes'
    headroom(axes, rows / (1 - rows) if rows < 0.5 else 1.0)


def step_axis(axes: Axes, label: str, ncols: int = 1) -> None:
    axes.set(xlabel="Step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper right", ncols=ncols)
