"""Plots of a run's final scores of a held-out set: rewards, margins, calibration, length.

`prefix` goes before a plot's name and `suffix` after its title, where there are several sets.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from rmfast.evaluation.metrics import reliability
from rmfast.report.plots import BINS, Plot, Theme, bins_at_zero, headroom
from rmfast.report.run_folder import Scores
from rmfast.report.summary import percent

DOTS = 3000  # points of a scatter plot at most


def reward_plot(scores: Scores, prefix: str = "", suffix: str = "") -> Plot:
    better, worse = scores.scores[scores.better], scores.scores[scores.worse]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        edges = np.histogram_bin_edges(np.concatenate([better, worse]), BINS).tolist()
        for values, colour, line, label in (
            (better, theme.first, "-", f"better reply, mean {better.mean():+.2f}"),
            (worse, theme.second, "--", f"worse reply, mean {worse.mean():+.2f}"),
        ):
            axes.hist(values, edges, color=colour, alpha=0.25)
            axes.hist(values, edges, histtype="step", color=colour, linestyle=line, linewidth=1.6, label=label)
        headroom(axes)
        axes.set(xlabel="Reward (logits)", ylabel="Pairs")
        axes.legend(loc="upper left")

    gap = float(better.mean() - worse.mean())
    title = f"Better replies score {abs(gap):.2f} {'above' if gap >= 0 else 'below'} worse ones{suffix}"
    return Plot(f"{prefix}rewards", title, "The further apart the two shapes, the better the ranking.", draw)


def margin_plot(scores: Scores, prefix: str = "", suffix: str = "") -> Plot:
    margin = scores.scores[scores.better] - scores.scores[scores.worse]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        edges = bins_at_zero(margin.min(), margin.max()).tolist()
        right, wrong = margin[margin > 0], margin[margin <= 0]
        axes.hist(right, edges, color=theme.first, alpha=0.85, label=f"ranked right: {right.size:,}")
        label = f"ranked wrong or tied: {wrong.size:,}"
        # A bin holds its left end: a tie would fall right of zero.
        axes.hist(
            wrong - (edges[1] - edges[0]) / 1e6,
            edges,
            color=theme.second,
            alpha=0.85,
            hatch="///",
            fill=True,
            label=label,
        )
        headroom(axes)
        axes.axvline(0, ymax=0.76, color=theme.ink, linewidth=1)  # up to the legend
        axes.set(xlabel="Margin: reward of better - reward of worse (logits)", ylabel="Pairs")
        axes.legend(loc="upper left")

    share = percent(float((margin > 0).mean()))
    title = f"{share} of margins are above zero, mean {margin.mean():+.2f}{suffix}"
    return Plot(f"{prefix}margins", title, "Mass far left of zero: pairs on which the model is sure and wrong.", draw)


def calibration_plot(scores: Scores, prefix: str = "", suffix: str = "") -> Plot:
    curve = reliability(scores.scores, scores.better, scores.worse)
    error = float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.count))

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=theme.third, linestyle=":", label="calibrated")
        axes.vlines(curve.predicted, curve.low, curve.high, color=theme.first, linewidth=1.2)
        label = "model, 95 % intervals"
        axes.plot(curve.predicted, curve.observed, color=theme.first, marker="o", markersize=5, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Predicted probability that a reply wins (%)")
        axes.set_ylabel("Share of them that won (%)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axes.legend(loc="upper left")

    title = f"Predicted odds are {100 * error:.1f} points off on average{suffix}"
    note = "Every pair is asked in both orders. Flatter than the diagonal: overconfident; steeper: too shy."
    return Plot(f"{prefix}calibration", title, note, draw)


def length_plot(scores: Scores, prefix: str = "", suffix: str = "") -> Plot | None:
    known = np.isfinite(scores.scores) & np.isfinite(scores.lengths)
    length, reward = scores.lengths[known], scores.scores[known]
    spread = length.size > 0 and np.ptp(length) > 0 and np.ptp(reward) > 0
    correlation = np.corrcoef(length, reward)[0, 1] if spread else 0.0
    if not length.size:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for ends, colour, marker, label in (
            (scores.worse, theme.second, "x", "worse"),
            (scores.better, theme.first, "o", "better"),
        ):
            ends = np.unique(ends)
            chosen = np.random.default_rng(0).permutation(ends)[: DOTS // 2]
            axes.scatter(
                scores.lengths[chosen],
                scores.scores[chosen],
                s=14,
                c=colour,
                marker=marker,
                alpha=0.4,
                linewidths=1 if marker == "x" else 0,
                label=label,
            )
        parts = [part for part in np.array_split(np.argsort(length, kind="stable"), 10) if part.size]
        middle = [(np.median(length[part]), np.median(reward[part])) for part in parts]
        axes.plot(*zip(*middle, strict=True), color=theme.ink, linewidth=2, label="median by tenths")
        if length.min() > 0 and length.max() > 20 * length.min():
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        headroom(axes)
        axes.set(xlabel="Length (tokens)", ylabel="Reward (logits)")
        axes.legend(loc="upper left", ncols=3, columnspacing=1, handletextpad=0.4, handlelength=1.4)

    trend = "Longer replies score higher" if correlation > 0 else "Longer replies score lower"
    trend = "Reward hardly depends on length" if abs(correlation) < 0.1 else trend
    title = f"{trend}: correlation {correlation:+.2f}{suffix}"
    return Plot(f"{prefix}length", title, "A steep median: the model may read length instead of content.", draw)
