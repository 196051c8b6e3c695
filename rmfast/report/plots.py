"""A run's plots: matplotlib's Agg canvas, colours that colour-blind readers tell apart (Okabe and Ito), two themes.

Each `*_plot` function takes a run and returns a `Plot`, or None where the run lacks what it shows. Nothing global is
touched: no pyplot, no backend.
"""

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from rmfast.evaluation.metrics import reliability
from rmfast.outputs.kinds import PICTURE_SOFTWARE
from rmfast.report.run_folder import Floats, Run, Scores, column, number
from rmfast.report.summary import baseline, percent

INCHES = (4.8, 3.5)  # so that the text stays readable where a phone shows the picture 340 pixels wide
DPI = 170
BINS = 40  # of a histogram
MARKERS = "osD^v"  # of held-out sets
DOTS = 3000  # points of a scatter plot at most


@dataclass(frozen=True)
class Theme:
    """Colours of one colour scheme."""

    paper: str
    ink: str
    faint: str
    first: str  # training; better
    second: str  # worse
    third: str  # what to compare with
    sets: tuple[str, ...]  # held-out sets, in turn


LIGHT = Theme(
    paper="#ffffff",
    ink="#1f2328",
    faint="#c9ced6",
    first="#0072B2",
    second="#D55E00",
    third="#5f6672",
    sets=("#D55E00", "#009E73", "#CC79A7"),
)
DARK = Theme(
    paper="#161b22",
    ink="#e6edf3",
    faint="#3d444d",
    first="#56B4E9",
    second="#E69F00",
    third="#9aa4b0",
    sets=("#E69F00", "#2DBE94", "#CC79A7"),
)


@dataclass(frozen=True)
class Plot:
    """One picture. `title` says what is seen, `note` how to read it; `draw` fills a figure."""

    name: str
    title: str
    note: str
    draw: Callable[[Figure, Theme], None]


def all_plots(run: Run) -> list[Plot]:
    """Every plot that the run has the data for, in reading order."""
    plots = [accuracy_plot(run), loss_plot(run)]
    for name, scores in run.finals.items():
        # Several held-out sets: the set's name tells their pictures apart.
        prefix, suffix = (f"{name}-", f" ({name})") if len(run.finals) > 1 else ("", "")
        finite = np.isfinite(scores.scores)
        edges = finite[scores.better] & finite[scores.worse]
        if edges.any():
            kept = Scores(scores.scores, scores.better[edges], scores.worse[edges], scores.lengths, scores.labels)
            plots += [each(kept, prefix, suffix) for each in (reward_plot, margin_plot, calibration_plot, length_plot)]
    plots += [contrast_plot(run), meta_plot(run), speed_plot(run)]
    return [plot for plot in plots if plot is not None]


def render(plot: Plot, theme: Theme = LIGHT) -> bytes:
    """The plot as PNG."""
    style: dict[Any, Any] = {
        "font.size": 11,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.paper,
        "axes.labelcolor": theme.ink,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.alpha": 0.5,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "text.color": theme.ink,
        "text.parse_math": False,  # a "$" in a file's name is no formula
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "agg.path.chunksize": 10_000,
    }
    with rc_context(style):
        figure = Figure(figsize=INCHES, dpi=DPI, facecolor=theme.paper, layout="constrained")
        plot.draw(figure, theme)
        title = textwrap.fill(plot.title.replace(" %", "\u00a0%"), 46)
        figure.suptitle(title, x=0.02, horizontalalignment="left", fontsize=11.5, fontweight="bold")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": PICTURE_SOFTWARE})
    return buffer.getvalue()


def smooth(values: Floats, span: float) -> Floats:
    """Exponential moving average [N] over about `span` steps, unbiased at the start; NaN values are passed over."""
    decay, total, mass = 1 - 2 / (span + 1), 0.0, 0.0
    result = np.full_like(values, np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            total, mass = decay * total + (1 - decay) * value, decay * mass + (1 - decay)
            result[index] = total / mass
    return result


def loss_plot(run: Run) -> Plot | None:
    step, loss = column(run.train, "step"), column(run.train, "loss")
    if not np.isfinite(loss).any():
        return None
    span = _span(step)
    smoothed = smooth(loss, span)
    known = smoothed[np.isfinite(smoothed)]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        _curve(axes, step, loss, smoothed, theme, _training(span))
        seen = [smoothed[int(span) :], np.array([np.log(2)])]
        for index, (name, rows) in enumerate(run.evals.items()):
            colour, marker = theme.sets[index % len(theme.sets)], MARKERS[index % len(MARKERS)]
            seen.append(column(rows, "loss"))
            line = axes.plot(column(rows, "step"), seen[-1], linestyle="--", label=f"held out: {name}")
            line[0].set(color=colour, marker=marker, markersize=5)
        axes.axhline(np.log(2), color=theme.third, linestyle=":", label="a coin's loss, ln 2 = 0.693")
        _show(axes, seen, 0.04)
        _step_axis(axes, "Ranking loss (nats)")

    title = f"Training loss: {known[0]:.3f} first, {known[-1]:.3f} last"
    if known.size == 1:
        title = f"Training loss: {known[0]:.3f} in its only step"
    return Plot("loss", title, "Faint: each step. Bold: the moving average.", draw)


def accuracy_plot(run: Run) -> Plot | None:
    step, accuracy = column(run.train, "step"), column(run.train, "accuracy")
    held = {name: rows for name, rows in run.evals.items() if np.isfinite(column(rows, "accuracy")).any()}
    if not held and not np.isfinite(accuracy).any():
        return None
    span = _span(step)
    smoothed = smooth(accuracy, span)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        seen = [smoothed[int(span) :]]
        if np.isfinite(accuracy).any():
            _curve(axes, step, accuracy, smoothed, theme, _training(span))
        for index, (name, rows) in enumerate(held.items()):
            x, y, low, high = (column(rows, key) for key in ("step", "accuracy", "accuracy_low", "accuracy_high"))
            colour, marker = theme.sets[index % len(theme.sets)], MARKERS[index % len(MARKERS)]
            axes.plot(x, y, color=colour, marker=marker, markersize=5, label=f"held out: {name}, 95 % interval")
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            if len(rows) == 1:  # a band needs two points
                axes.vlines(x, low, high, color=colour, linewidth=2)
            rule, share = baseline(rows[-1])
            seen += [y, low, high, np.array([share])]
            label = f"{rule.strip(chr(34))}: {percent(share)}"
            axes.axhline(share, color=theme.third, linestyle=(0, (5, 2 + 2 * index)), label=label)
        _show(axes, seen, 0.06)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _step_axis(axes, "Pairs ranked right (%)")

    if not held:
        return Plot("accuracy", f"Training accuracy: {percent(_last(accuracy))} at the end", "No held-out set.", draw)
    name, rows = next(iter(held.items()))
    rule, share = baseline(rows[-1])
    title = f"{name}: {percent(number(rows[-1], 'accuracy'))} right, {rule} {percent(share)}"
    return Plot("accuracy", title, "Held-out accuracy is useful where its band lies above the dashed line.", draw)


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
        _headroom(axes)
        axes.set(xlabel="Reward (logits)", ylabel="Pairs")
        axes.legend(loc="upper left")

    gap = float(better.mean() - worse.mean())
    title = f"Better replies score {abs(gap):.2f} {'above' if gap >= 0 else 'below'} worse ones{suffix}"
    return Plot(f"{prefix}rewards", title, "The further apart the two shapes, the better the ranking.", draw)


def margin_plot(scores: Scores, prefix: str = "", suffix: str = "") -> Plot:
    margin = scores.scores[scores.better] - scores.scores[scores.worse]

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        # Bins meet at zero, so that none mixes right and wrong.
        width = max(float(np.ptp(np.append(margin, 0.0))) / BINS, 1e-9)
        edges = (width * np.arange(np.floor(margin.min() / width) - 1, np.ceil(margin.max() / width) + 2)).tolist()
        right, wrong = margin[margin > 0], margin[margin <= 0]
        axes.hist(right, edges, color=theme.first, alpha=0.85, label=f"ranked right: {right.size:,}")
        label = f"ranked wrong or tied: {wrong.size:,}"
        # A bin holds its left end: a tie would fall right of zero.
        axes.hist(wrong - width / 1e6, edges, color=theme.second, alpha=0.85, hatch="///", fill=True, label=label)
        _headroom(axes)
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
        _headroom(axes)
        axes.set(xlabel="Length (tokens)", ylabel="Reward (logits)")
        axes.legend(loc="upper left", ncols=3, columnspacing=1, handletextpad=0.4, handlelength=1.4)

    trend = "Longer replies score higher" if correlation > 0 else "Longer replies score lower"
    trend = "Reward hardly depends on length" if abs(correlation) < 0.1 else trend
    title = f"{trend}: correlation {correlation:+.2f}{suffix}"
    return Plot(f"{prefix}length", title, "A steep median: the model may read length instead of content.", draw)


def contrast_plot(run: Run) -> Plot | None:
    step, loss = column(run.train, "step"), column(run.train, "contrastive_loss")
    overlap, views = column(run.train, "feature_overlap"), column(run.train, "views_cosine")
    if not np.isfinite(loss).any():
        return None
    span = _span(step)

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        _curve(upper, step, loss, smooth(loss, span), theme, _training(span))
        _headroom(upper)
        upper.set_ylabel("Loss")
        upper.legend(loc="upper right")
        _curve(lower, step, overlap, smooth(overlap, span), theme, "better and worse")
        lower.plot(step, smooth(views, span), "--", color=theme.second, label="two views")
        _headroom(lower, 0.6)
        low, high = lower.get_ylim()
        lower.set_yticks([tick for tick in lower.get_yticks() if low <= tick <= 1])  # the room above is the legend's
        lower.set_ylim(low, high)
        _step_axis(lower, "Mean cosine")

    title = f"Features of better and worse responses: cosine {_last(smooth(overlap, span)):.2f} at the end"
    return Plot("contrast", title, "The term pulls views together and pushes different responses apart.", draw)


def meta_plot(run: Run) -> Plot | None:
    step, before = column(run.train, "step"), column(run.train, "difference_loss")
    after, variance = column(run.train, "difference_loss_after"), column(run.train, "reward_difference_variance")
    if not np.isfinite(before).any():
        return None
    span = _span(step)
    rises = (after - before)[np.isfinite(after - before)]

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _curve(upper, step, before, smooth(before, span), theme, f"J, {_training(span)}")
        if rises.size:
            upper.plot(step, after, "^", color=theme.second, markersize=4, label="after the ascent")
        _headroom(upper)
        upper.set_ylabel("Difference loss J")
        upper.legend(loc="upper right", ncols=2)
        _curve(lower, step, variance, smooth(variance, span), theme, "variance of reward differences")
        lower.set_ylim(bottom=0)
        _headroom(lower)
        _step_axis(lower, "Variance")

    title = f"Samples of a prompt: J {_last(before):.3f} at the end"
    title += f", an ascent adds {rises.mean():.1e}" if rises.size else ""
    return Plot("meta", title, "Below: how far apart the samples of one prompt score.", draw)


def speed_plot(run: Run) -> Plot | None:
    step, tokens = column(run.train, "step"), column(run.train, "tokens_per_second")
    shares = {"prefix saved": column(run.train, "prefix_saved_share"), "padding": column(run.train, "padding_share")}
    if not np.isfinite(tokens).any():
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _curve(upper, step, tokens, smooth(tokens, _span(step)), theme, "")
        upper.set_ylim(bottom=0)
        upper.yaxis.set_major_formatter(EngFormatter(sep=""))
        upper.set_ylabel("Tokens per second")
        for (label, share), colour, line in zip(shares.items(), (theme.first, theme.second), ("-", "--"), strict=True):
            marker = "o" if np.isfinite(share).sum() == 1 else ""
            smoothed = smooth(share, _span(step))
            lower.plot(step, smoothed, color=colour, linestyle=line, marker=marker, label=label)
        lower.set_ylim(0, 1)
        lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        _step_axis(lower, "Tokens (%)")

    # The first steps warm up (allocator, compilation): the median is what a long run sees.
    title = f"{EngFormatter(places=1)(float(np.nanmedian(tokens)))} tokens per second (median step)"
    note = "Below: tokens that a shared prompt saved, and slots that held no token."
    return Plot("speed", title, note, draw)


def _curve(axes: Axes, step: Floats, values: Floats, smoothed: Floats, theme: Theme, label: str) -> None:
    """Each step faint, its moving average bold; a dot where there is one step only."""
    marker = "o" if np.isfinite(values).sum() == 1 else ""
    axes.plot(step, values, color=theme.first, alpha=0.25, linewidth=0.8)
    axes.plot(step, smoothed, color=theme.first, linewidth=2, marker=marker, label=label)


def _span(step: Floats) -> float:
    return float(np.clip(step.size / 15, 1, 100))


def _training(span: float) -> str:
    return f"training, mean of ~{span:.0f} steps" if span >= 2 else "training"


def _last(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else float("nan")


def _show(axes: Axes, seen: list[Floats], margin: float) -> None:
    """Range of y by what the reader compares: single steps of few pairs jump about and are cut off."""
    values = np.concatenate(seen)
    values = values[np.isfinite(values)]
    if values.size:
        axes.set_ylim(values.min() - margin, values.max() + margin)
    rows = 0.08 * len(axes.get_legend_handles_labels()[1])  # height of the legend, of the axes'
    _headroom(axes, rows / (1 - rows) if rows < 0.5 else 1.0)


def _headroom(axes: Axes, share: float = 0.3) -> None:
    """Room for the legend above the data, as a share of their height."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + share * (high - low))


def _step_axis(axes: Axes, label: str) -> None:
    axes.set(xlabel="Step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(loc="upper right")
