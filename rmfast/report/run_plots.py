"""A run's plots: over its steps, and of its final scores.

Each `*_plot` function takes a run and returns a `Plot`, or None where the run lacks what it shows.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from rmfast.report.plots import Plot, Theme, headroom
from rmfast.report.run_folder import Floats, Run, Scores, column, number
from rmfast.report.score_plots import calibration_plot, length_plot, margin_plot, reward_plot
from rmfast.report.summary import baseline, percent

MARKERS = "osD^v"  # of held-out sets


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
    return Plot("accuracy", title, "Held-out accuracy is useful where its band is above the dashed line.", draw)


def contrast_plot(run: Run) -> Plot | None:
    step, loss = column(run.train, "step"), column(run.train, "contrastive_loss")
    overlap, views = column(run.train, "feature_overlap"), column(run.train, "views_cosine")
    if not np.isfinite(loss).any():
        return None
    span = _span(step)

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        _curve(upper, step, loss, smooth(loss, span), theme, _training(span))
        headroom(upper)
        upper.set_ylabel("Loss")
        upper.legend(loc="upper right")
        _curve(lower, step, overlap, smooth(overlap, span), theme, "better and worse")
        lower.plot(step, smooth(views, span), "--", color=theme.second, label="two views")
        headroom(lower, 0.6)
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
        headroom(upper)
        upper.set_ylabel("Difference loss J")
        upper.legend(loc="upper right", ncols=2)
        _curve(lower, step, variance, smooth(variance, span), theme, "variance of reward differences")
        lower.set_ylim(bottom=0)
        headroom(lower)
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
    headroom(axes, rows / (1 - rows) if rows < 0.5 else 1.0)


def _step_axis(axes: Axes, label: str) -> None:
    axes.set(xlabel="Step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(loc="upper right")
