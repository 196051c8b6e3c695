"""Plots over rounds, from 0, the first policy, on: what is compared, and how far policies drift."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.evaluation.rounds.figures import FIRST, GOLD, JUDGE, PolicyFigures, Rounds
from rmfast.report.plots import Plot, Theme, headroom
from rmfast.report.rounds.words import BY, model_name

Read = Callable[[PolicyFigures], Figure | None]
MARKS = "os^Dv*"
SHIFT = 0.06  # of lines beside each other, so that their intervals are seen


def rounds_plots(found: Rounds) -> list[Plot]:
    """All plots that the figures allow."""
    plots = [_gold(found), _wins(found), _rewards(found), _drift(found), _diversity(found), _distance(found)]
    return [plot for plot in plots if plot is not None]


def _chains(found: Rounds) -> list[tuple[str, list[PolicyFigures]]]:
    """The policies of MetaRM's rounds and of the control, each from the first policy on."""
    first = found.policies[FIRST]
    kinds = [("MetaRM", False), *([("control (plain PPO)", True)] if found.control else [])]
    return [
        (name, [first, *(one for key, one in found.policies.items() if key != FIRST and one.control == control)])
        for name, control in kinds
    ]


def _lines(axes: Axes, found: Rounds, read: Read, theme: Theme) -> None:
    """A figure of each chain over the rounds, with intervals."""
    chains = _chains(found)
    for place, (name, policies) in enumerate(chains):
        points = [(one.round, value) for one in policies if (value := read(one)) is not None]
        if points:
            shift = SHIFT * (place - (len(chains) - 1) / 2)
            _line(
                axes, points, (theme.first, theme.second)[place], MARKS[place], name if len(chains) > 1 else "", shift
            )
    _rounds_axis(axes, found)


def _two(canvas: Canvas, found: Rounds, theme: Theme, *panels: tuple[str, Read]) -> None:
    """Two figures of each chain, one below the other."""
    for axes, (label, read) in zip(canvas.subplots(2, 1, sharex=True), panels, strict=True):
        _lines(axes, found, read, theme)
        axes.set_ylabel(label)
        if axes.get_subplotspec().is_first_row():
            axes.set_xlabel("")
            _legend(axes, 2)


def _line(
    axes: Axes, points: Sequence[tuple[int, Figure]], colour: str, mark: str, label: str, shift: float = 0.0,
    style: str = "-",
) -> None:  # fmt: skip
    x = np.array([number for number, _ in points]) + shift
    value, low, high = (np.array([getattr(one, name) for _, one in points]) for name in ("value", "low", "high"))
    axes.plot(x, value, color=colour, marker=mark, markersize=5, linewidth=1.5, linestyle=style, label=label)
    axes.vlines(x, low, high, color=colour, alpha=0.6, linewidth=1.4)


def _rounds_axis(axes: Axes, found: Rounds) -> None:
    axes.set_xlabel("Round (0: the first policy)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(-0.3, found.rounds + 0.3)


def _legend(axes: Axes, columns: int = 1, room: float = 0.3) -> None:
    if axes.get_legend_handles_labels()[1]:
        headroom(axes, room)
        axes.legend(loc="upper left", ncols=columns)


def _gold(found: Rounds) -> Plot | None:
    if GOLD not in found.policies[FIRST].gain:
        return None

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.subplots()
        axes.axhline(0, color=theme.third, linestyle=":", linewidth=1.2)
        _lines(axes, found, lambda one: one.gain[GOLD], theme)
        axes.set_ylabel("Gain of gold (std)")
        _legend(axes)

    golds = [one.gain[GOLD].value for one in _chains(found)[0][1]]
    title = (
        f"Gold is highest {'before the first round' if not (best := int(np.argmax(golds))) else f'after round {best}'}"
    )
    note = "Mean over held-out prompts with 95 % intervals, in std of gold over the first policy's answers."
    return Plot("gold", title, note, draw)


def _wins(found: Rounds) -> Plot | None:
    kinds = [("first", lambda n: FIRST), ("before", lambda n: f"round-{n - 1}")]
    if found.control:
        kinds.append(("control", lambda n: f"control-{n}"))
    words = {"first": "first policy", "before": "round before", "control": "control"}
    series: list[tuple[str, str, list[tuple[int, Figure]]]] = []
    for by in (GOLD, JUDGE):
        for kind, against in kinds:
            rounds = range(2 if kind == "before" else 1, found.rounds + 1)
            known = [(n, one.rate) for n in rounds if (one := found.compared(f"round-{n}", against(n), by)) is not None]
            if known:
                series.append((by, kind, known))
    if not series:
        return None

    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.subplots()
        axes.axhline(0.5, color=theme.third, linestyle=":", linewidth=1.2)
        colours = {"first": theme.first, "before": theme.sets[1], "control": theme.second}
        several = len({by for by, _, _ in series}) > 1
        for place, (by, kind, known) in enumerate(series):
            label = f"{words[kind]}{f', {BY[by]}' if several else ''}"
            shift, style = SHIFT * (place - (len(series) - 1) / 2), "-" if by == series[0][0] else "--"
            _line(axes, known, colours[kind], MARKS[place], label, shift, style)
        axes.set_ylabel("Win rate against (ties half)")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _rounds_axis(axes, found)
        axes.set_xlim(0.7, found.rounds + 0.3)
        axes.set_xlabel("Round")
        ticks = [tick for tick in axes.get_yticks() if 0 <= tick <= 1]
        _legend(axes, 1 if len(series) < 4 else 2, 0.35)
        axes.set_yticks(ticks)  # no share is above 100 %

    by, _, known = series[0]
    title = f"Against the first policy by {BY[by]}: {known[-1][1].value:.0%} in round {known[-1][0]}"
    note = (
        "The share of held-out answers that are better than the other policy's to the same prompt; a tie is half a win."
    )
    return Plot("wins", title, note, draw)


def _models(found: Rounds) -> list[str]:
    return list(found.policies[FIRST].gain)


def _of_models(
    axes: Axes, found: Rounds, read: Callable[[PolicyFigures, str], Figure], theme: Theme, *, zero: bool = False
) -> None:
    """A figure of MetaRM's rounds under each model; gold dashed. zero: the axis begins there."""
    models, policies = _models(found), _chains(found)[0][1]
    metas = [model for model in models if model.startswith("meta-")]
    for place, model in enumerate(models):
        points = [(one.round, read(one, model)) for one in policies]
        strength = 0.45 + 0.55 * (metas.index(model) + 1) / len(metas) if model in metas else 1.0
        colour = {GOLD: theme.ink, "reward": theme.second}.get(model, theme.first)
        shift = SHIFT * (place - (len(models) - 1) / 2)
        x = np.array([number for number, _ in points]) + shift
        value, low, high = (np.array([getattr(one, key) for _, one in points]) for key in ("value", "low", "high"))
        style, mark = "--" if model == GOLD else "-", MARKS[place % len(MARKS)]
        axes.plot(
            x, value, color=colour, alpha=strength, marker=mark, markersize=5, linestyle=style, label=model_name(model)
        )
        axes.vlines(x, low, high, color=colour, alpha=0.5 * strength, linewidth=1.4)
    _rounds_axis(axes, found)
    if zero:
        axes.set_ylim(bottom=0)
    _legend(axes, 2 if len(models) > 3 else 1, 0.45)


def _rewards(found: Rounds) -> Plot:
    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.subplots()
        axes.axhline(0, color=theme.third, linestyle=":", linewidth=1.2)
        _of_models(axes, found, lambda one, model: one.gain[model], theme)
        axes.set_ylabel("Gain of the reward (std)")

    latest = found.policies[f"round-{found.rounds}"].gain[f"meta-{found.rounds}"]
    title = f"Under its round's reward model the last policy gains {latest.value:+.2f} std"
    note = "Each round's policy under each round's reward model, in standard deviations of that model's rewards of the "
    return Plot(
        "rewards", title, note + "first policy's answers. Where gold stays behind, the gain is the models' fault.", draw
    )


def _drift(found: Rounds) -> Plot:
    def draw(canvas: Canvas, theme: Theme) -> None:
        axes = canvas.subplots()
        _of_models(axes, found, lambda one, model: one.drift[model], theme, zero=True)
        axes.set_ylabel("Variance of differences")

    first, last = (found.policies[name].drift["reward"].value for name in (FIRST, f"round-{found.rounds}"))
    title = f"Under the first reward model the variance of differences ends at {last / first:.2g} times the first"
    note = (
        "The variance of the difference of two answers' rewards to a prompt, over the variance of the model's rewards "
    )
    note += "of the first policy's answers. A model that falls no longer tells the policy's answers apart."
    return Plot("drift", title, note, draw)


def _diversity(found: Rounds) -> Plot:
    def draw(canvas: Canvas, theme: Theme) -> None:
        _two(canvas, found, theme, ("SelfBLEU", lambda one: one.self_bleu["mean"]), ("Cosine", lambda one: one.cosine))

    first, last = (found.policies[name].self_bleu["mean"].value for name in (FIRST, f"round-{found.rounds}"))
    title = f"Answers to different prompts: SelfBLEU {first:.2f} at first, {last:.2f} in the last round"
    note = (
        "The higher, the more alike. Features: the last hidden state of prompt and answer in the first reward model, "
    )
    return Plot(
        "diversity", title, note + "which are alike for their form too: differences tell more than values.", draw
    )


def _distance(found: Rounds) -> Plot:
    def draw(canvas: Canvas, theme: Theme) -> None:
        _two(canvas, found, theme, ("KL (nats)", lambda one: one.kl), ("Length (tokens)", lambda one: one.length))

    last = found.policies[f"round-{found.rounds}"]
    title = f"The last round is {last.kl.value:.3g} nats from the first policy, {last.length.value:.3g} tokens long"
    note = (
        "KL is the mean log-ratio to the first policy of the answers that were sampled, whatever the rounds' reference."
    )
    return Plot("distance", title, note, draw)
