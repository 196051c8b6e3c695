"""A run's plots: over its steps, and of its final scores.

Each `*_plot` function takes a run and returns a `Plot`, or None where the run lacks what it shows.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from rmfast.report.curves import (
    MARKERS,
    curve,
    held_out,
    last_of,
    show,
    smooth,
    span_of,
    step_axis,
    training_label,
)
from rmfast.report.plots import Plot, Theme, headroom
from rmfast.report.run_folder import Run, Scores, column, number
from rmfast.report.score_plots import calibration_plot, length_plot, margin_plot, reward_plot
from rmfast.report.summary import baseline, percent


def all_plots(run: Run) -> list[Plot]:
    """Every plot that the run has the data for, in reading order."""
    plots = [accuracy_plot(run), perplexity_plot(run), loss_plot(run)]
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


def loss_plot(run: Run) -> Plot | None:
    step, loss = column(run.train, "step"), column(run.train, "loss")
    if not np.isfinite(loss).any():
        return None
    span = span_of(step)
    smoothed = smooth(loss, span)
    known = smoothed[np.isfinite(smoothed)]
    of_tokens = np.isfinite(column(run.train, "trained_tokens")).any()

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        curve(axes, step, loss, smoothed, theme, training_label(span))
        seen = [smoothed[int(span) :]] + ([] if of_tokens else [np.array([np.log(2)])])
        for index, (name, rows) in enumerate(run.evals.items()):
            colour, marker = theme.sets[index % len(theme.sets)], MARKERS[index % len(MARKERS)]
            seen.append(column(rows, "loss"))
            line = axes.plot(column(rows, "step"), seen[-1], linestyle="--", label=f"held out: {name}")
            line[0].set(color=colour, marker=marker, markersize=5)
        if not of_tokens:
            axes.axhline(np.log(2), color=theme.third, linestyle=":", label="a coin's loss, ln 2 = 0.693")
        show(axes, seen, 0.04)
        step_axis(axes, "Loss (nats a token)" if of_tokens else "Ranking loss (nats)")

    title = f"Training loss, moving average: {known[0]:.3f} first, {known[-1]:.3f} last"
    if known.size == 1:
        title = f"Training loss: {known[0]:.3f} in its only step"
    return Plot("loss", title, "Faint: each step. Bold: the moving average.", draw)


def accuracy_plot(run: Run) -> Plot | None:
    step, accuracy = column(run.train, "step"), column(run.train, "accuracy")
    held = {name: rows for name, rows in run.evals.items() if np.isfinite(column(rows, "accuracy")).any()}
    if not held and not np.isfinite(accuracy).any():
        return None
    span = span_of(step)
    smoothed = smooth(accuracy, span)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        seen = [smoothed[int(span) :]]
        if np.isfinite(accuracy).any():
            curve(axes, step, accuracy, smoothed, theme, training_label(span))
        for index, (name, rows) in enumerate(held.items()):
            seen += held_out(axes, rows, "accuracy", theme, index, f"held out: {name}, 95 % interval")
            rule, share = baseline(rows[-1])
            seen.append(np.array([share]))
            label = f"{rule.strip(chr(34))}: {percent(share)}"
            axes.axhline(share, color=theme.third, linestyle=(0, (5, 2 + 2 * index)), label=label)
        show(axes, seen, 0.06)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        step_axis(axes, "Pairs ranked right (%)")

    if not held:
        return Plot("accuracy", f"Training accuracy: {percent(last_of(accuracy))} at the end", "No held-out set.", draw)
    name, rows = next(iter(held.items()))
    rule, share = baseline(rows[-1])
    title = f"{name}: {percent(number(rows[-1], 'accuracy'))} right, {rule} {percent(share)}"
    return Plot("accuracy", title, "Held-out accuracy is useful where its band is above the dashed line.", draw)


def perplexity_plot(run: Run) -> Plot | None:
    held = {name: rows for name, rows in run.evals.items() if np.isfinite(column(rows, "perplexity")).any()}
    if not held:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        for index, (name, rows) in enumerate(held.items()):
            held_out(axes, rows, "perplexity", theme, index, f"held out: {name}, 95 % interval")
        headroom(axes)
        step_axis(axes, "Perplexity")

    name, rows = next(iter(held.items()))
    first, last = (number(rows[place], "perplexity") for place in (0, -1))
    begin = int(number(rows[0], "step"))
    when = f"after step {begin}" if begin else "before training"
    title = f"{name}: perplexity {first:.2f} {when}, {last:.2f} at the end"
    if len(rows) == 1:
        title = f"{name}: perplexity {last:.2f}"
    return Plot("perplexity", title, "The band is a 95 % interval over demonstrations.", draw)


def contrast_plot(run: Run) -> Plot | None:
    step, loss = column(run.train, "step"), column(run.train, "contrastive_loss")
    overlap, views = column(run.train, "feature_overlap"), column(run.train, "views_cosine")
    if not np.isfinite(loss).any():
        return None
    span = span_of(step)

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        curve(upper, step, loss, smooth(loss, span), theme, training_label(span))
        headroom(upper)
        upper.set_ylabel("Loss")
        upper.legend(loc="upper right")
        curve(lower, step, overlap, smooth(overlap, span), theme, "better and worse")
        lower.plot(step, smooth(views, span), "--", color=theme.second, label="two views")
        headroom(lower, 0.6)
        low, high = lower.get_ylim()
        lower.set_yticks([tick for tick in lower.get_yticks() if low <= tick <= 1])  # the room above is the legend's
        lower.set_ylim(low, high)
        step_axis(lower, "Mean cosine")

    title = f"Features of better and worse responses: cosine {last_of(smooth(overlap, span)):.2f} at the end"
    return Plot("contrast", title, "The term pulls views together and pushes different responses apart.", draw)


def meta_plot(run: Run) -> Plot | None:
    step, before = column(run.train, "step"), column(run.train, "difference_loss")
    after, variance = column(run.train, "difference_loss_after"), column(run.train, "reward_difference_variance")
    if not np.isfinite(before).any():
        return None
    span = span_of(step)
    rises = (after - before)[np.isfinite(after - before)]

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        curve(upper, step, before, smooth(before, span), theme, f"J, {training_label(span)}")
        if rises.size:
            upper.plot(step, after, "^", color=theme.second, markersize=4, label="after the ascent")
        headroom(upper)
        upper.set_ylabel("Difference loss J")
        upper.legend(loc="upper right", ncols=2)
        curve(lower, step, variance, smooth(variance, span), theme, "variance of reward differences")
        lower.set_ylim(bottom=0)
        headroom(lower)
        step_axis(lower, "Variance")

    title = f"Samples of a prompt: J {last_of(before):.3f} at the end"
    title += f", an ascent adds {rises.mean():.1e}" if rises.size else ""
    return Plot("meta", title, "Below: how far apart the samples of one prompt score.", draw)


def speed_plot(run: Run) -> Plot | None:
    step, tokens = column(run.train, "step"), column(run.train, "tokens_per_second")
    kinds = (("prefix saved", "prefix_saved_share"), ("padding", "padding_share"), ("sampling", "sampling_share"))
    shares = {label: column(run.train, key) for label, key in kinds}
    if not np.isfinite(tokens).any():
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        curve(upper, step, tokens, smooth(tokens, span_of(step)), theme, "")
        upper.set_ylim(bottom=0)
        upper.yaxis.set_major_formatter(EngFormatter(sep=""))
        upper.set_ylabel("Tokens per second")
        lines = ((theme.first, "-"), (theme.second, "--"), (theme.third, "-."))
        for (label, share), (colour, line) in zip(shares.items(), lines, strict=True):
            known = np.isfinite(share).sum()
            marker = "o" if known == 1 else ""
            smoothed = smooth(share, span_of(step))
            lower.plot(step, smoothed, color=colour, linestyle=line, marker=marker, label=label if known else None)
        lower.set_ylim(0, 1.4)  # the room above is the legend's
        lower.set_yticks([0, 0.5, 1])
        lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        step_axis(lower, "Share (%)", ncols=3)

    # The first steps warm up (allocator, compilation): the median is what a long run sees.
    title = f"{EngFormatter(places=1)(float(np.nanmedian(tokens)))} tokens per second (median step)"
    note = "Below: tokens that a shared prompt saved, and slots that held no token."
    if np.isfinite(shares["sampling"]).any():
        note = "Below: sampling's share of the time."
    return Plot("speed", title, note, draw)
