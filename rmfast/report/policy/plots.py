"""Plots of a run that trained a policy, over its steps: each is one or two panels of its metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rmfast.report.curves import curve, held_out, last_of, smooth, span_of, step_axis, training_label
from rmfast.report.plots import Plot, Theme, headroom
from rmfast.report.policy.collapse import find_collapse
from rmfast.report.policy.gold_plots import gold_plot, mark_step, members_plot
from rmfast.report.run_folder import Floats, Run, column
from rmfast.report.run_plots import speed_plot
from rmfast.report.summary import percent

LINES = ("-", "--", ":")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Axes of one unit.

    Args:
        label: of the y axis.
        curves: a step's metrics with their names in the legend; the first is drawn with its single steps.
        held: an evaluation's metric; None for none.
        percent: whether values are shares. zero: whether the axis begins at zero.
    """

    label: str
    curves: Sequence[tuple[str, str]] = ()
    held: str | None = None
    percent: bool = False
    zero: bool = False

    def known(self, run: Run) -> bool:
        """Whether the run has any of its values."""
        steps = any(np.isfinite(column(run.train, key)).any() for key, _ in self.curves)
        return steps or bool(self.held_out(run))

    def held_out(self, run: Run) -> list[str]:
        """Names of the held-out sets that have its metric."""
        key = self.held
        return [] if key is None else [n for n, rows in run.evals.items() if np.isfinite(column(rows, key)).any()]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot of panels one below the other. `title` is made of a run's values by their keys."""

    name: str
    panels: Sequence[Panel]
    title: Callable[[Callable[[str], Floats]], str]
    note: str


def _from_to(values: Floats, form: str) -> str:
    known = values[np.isfinite(values)]
    if known.size < 2 or not np.ptp(known):
        return _last(values, form)
    return f"{known[0]:{form}} first, {known[-1]:{form}} last"


def _last(values: Floats, form: str) -> str:
    return format(last, form) if np.isfinite(last := last_of(values)) else "unknown in training"


def _ratio_title(of: Callable[[str], Floats]) -> str:
    gap = of("first_ratio_gap")
    known = gap[np.isfinite(gap)]
    if not known.size:
        return f"Clipped tokens: {percent(last_of(of('policy/clipfrac_avg')))} at the end"
    worst = "exactly 1 in every step" if not known.max() else f"up to {known.max():.1e} from 1"
    return f"The first ratio is {worst}"


CHARTS = (
    Chart(
        name="reward",
        panels=(
            Panel(label="Reward", curves=(("objective/scores", "training"),), held="reward"),
            Panel(label="Gold", held="gold"),
        ),
        title=lambda of: f"Reward of an answer: {_from_to(of('objective/scores'), '.3g')}",
        note="As the reward model gives it. Gold, a reward model that never trains, must not fall while it rises.",
    ),
    Chart(
        name="spread",
        panels=(
            Panel(label="Std", curves=(("objective/scores_std", ""),), zero=True),
            Panel(label="Skewness", curves=(("objective/scores_skew", ""),)),
        ),
        title=lambda of: f"Spread of the rewards: std {_from_to(of('objective/scores_std'), '.3g')}",
        note="Of a step's answers. A skewness that rises, a long right tail, comes before many a collapse.",
    ),
    Chart(
        name="kl",
        panels=(
            Panel(label="KL per answer", curves=(("objective/kl", "training"),), held="kl"),
            Panel(label="Per token", curves=(("kl_per_token", "training"),)),
        ),
        title=lambda of: f"KL of an answer (nats): {_from_to(of('objective/kl'), '.3g')}",
        note="How far the policy is from where it began. A KL that keeps climbing buys less and less real quality.",
    ),
    Chart(
        name="coefficient",
        panels=(Panel(label="KL coefficient", curves=(("kl_coefficient", ""),), zero=True),),
        title=lambda of: f"KL coefficient: {_from_to(of('kl_coefficient'), '.3g')}",
        note="The price of a nat of KL in reward. Where ppo.kl_target is set, it follows the KL.",
    ),
    Chart(
        name="entropy",
        panels=(Panel(label="Entropy (nats)", curves=(("policy/entropy_avg", ""),), zero=True),),
        title=lambda of: f"Entropy of a token: {_from_to(of('policy/entropy_avg'), '.3g')}",
        note="Near zero, all answers to a prompt are alike and nothing more can be learnt from them.",
    ),
    Chart(
        name="perplexity",
        panels=(Panel(label="Perplexity", curves=(("perplexity", "training"),), held="perplexity"),),
        title=lambda of: f"Perplexity of the answers: {_from_to(of('perplexity'), '.3g')}",
        note="Under the policy that drew them. It falls while the policy grows sure; 1: it has one answer left.",
    ),
    Chart(
        name="lengths",
        panels=(
            Panel(label="Tokens", curves=(("mean_length", "training"),), held="length", zero=True),
            Panel(label="Cut (%)", curves=(("cut_share", ""),), percent=True, zero=True),
        ),
        title=lambda of: f"Tokens of an answer: {_from_to(of('mean_length'), '.1f')}",
        note="Below: answers that ppo.max_new_tokens cut. Reward that rises with length alone is a warning.",
    ),
    Chart(
        name="losses",
        panels=(
            Panel(label="Policy loss", curves=(("loss/policy_avg", ""),)),
            Panel(label="Value loss", curves=(("loss/value_avg", ""),), zero=True),
        ),
        title=lambda of: (
            f"Losses: policy {_last(of('loss/policy_avg'), '.3g')} at the end"
            + (f", value {last:.3g}" if np.isfinite(last := last_of(of("loss/value_avg"))) else "")
        ),
        note="A policy loss is no measure of progress: it is near minus the mean advantage, 0 if whitened. "
        "The value loss must fall.",
    ),
    Chart(
        name="clipping",
        panels=(
            Panel(
                label="Clipped (%)",
                curves=(("policy/clipfrac_avg", "policy"), ("val/clipfrac_avg", "value")),
                percent=True,
                zero=True,
            ),
            Panel(
                label="Gap",
                curves=(("sampler_gap", "to the sampler"), ("first_ratio_gap", "of the first ratio")),
                zero=True,
            ),
        ),
        title=_ratio_title,
        note="Many clipped tokens: updates are too large. Below: by how much sampling and training round apart.",
    ),
    Chart(
        name="explained",
        panels=(Panel(label="Explained variance", curves=(("explained_variance", ""),)),),
        title=lambda of: f"Explained variance: {_from_to(of('explained_variance'), '.2f')}",
        note="1: the critic knows every return beforehand; 0: no more than their mean; below 0: worse than that.",
    ),
)


def policy_plots(run: Run) -> list[Plot]:
    """Every plot that the run has the data for, in reading order."""
    collapse = find_collapse(run)
    began = None if collapse is None else collapse.began
    charts = [_plot(chart, run, began) for chart in CHARTS]
    drawn = [*charts[:1], gold_plot(run, began), members_plot(run, began), *charts[1:], speed_plot(run)]
    plots = [plot for plot in drawn if plot is not None]
    if plots and _warmup(run):
        plots[0] = replace(plots[0], note=f"{plots[0].note} Grey, in all plots: the critic alone learns.")
    if plots and began is not None:
        plots[0] = replace(plots[0], note=f"{plots[0].note} Dashed line, in all plots: the collapse begins.")
    return plots


def _warmup(run: Run) -> list[float]:
    """Steps in which the critic alone learns."""
    return [row["step"] for row in run.train if row.get("critic_warmup") is True]


def _plot(chart: Chart, run: Run, began: float | None) -> Plot | None:
    panels = [panel for panel in chart.panels if panel.known(run)]
    if not panels:
        return None

    warmup = _warmup(run)

    def draw(figure: Figure, theme: Theme) -> None:
        ratios = (3, 2) if len(panels) == 2 else (1,)
        every = figure.subplots(len(panels), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
        for panel, axes, ratio in zip(panels, every, ratios, strict=True):
            if warmup:
                axes.axvspan(min(warmup) - 0.5, max(warmup) + 0.5, color=theme.faint, alpha=0.35, linewidth=0)
            mark_step(axes, began, theme)
            _draw(panel, axes, run, theme, ratio / sum(ratios))
        step_axis(every[-1], panels[-1].label)

    title = chart.title(lambda key: column(run.train, key))
    return Plot(chart.name, title, chart.note, draw)


def _draw(panel: Panel, axes: Axes, run: Run, theme: Theme, height: float) -> None:
    """`height`: of the axes, as a share of the figure's."""
    step = column(run.train, "step")
    span = span_of(step) if step.size else 1.0
    colours = (theme.first, theme.second, theme.third)
    drawn = [(key, label) for key, label in panel.curves if np.isfinite(column(run.train, key)).any()]
    several = len(drawn) > 1 or panel.held_out(run)
    for index, (key, label) in enumerate(drawn):
        values = column(run.train, key)
        words = training_label(span) if label == "training" else label
        if index == 0:
            curve(axes, step, values, smooth(values, span), theme, words if several else "")
        else:
            marker = "o" if np.isfinite(values).sum() == 1 else ""
            line = axes.plot(step, smooth(values, span), LINES[index], color=colours[index], label=words)
            line[0].set_marker(marker)
    for index, name in enumerate(panel.held_out(run)):
        assert panel.held is not None
        held_out(axes, run.evals[name], panel.held, theme, index, f"held out: {name}, 95 % interval")
    if panel.zero:
        axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 else 1)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylabel(panel.label)
    if several:
        legend = 0.105 * len(axes.get_legend_handles_labels()[1]) / height
        headroom(axes, legend / (1 - legend))
        axes.legend(loc="upper right")
