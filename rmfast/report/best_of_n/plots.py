"""Proxy and gold reward of best-of-N over N, as plots: members alone, and the rules that combine them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from rmfast.evaluation.best_of_n.curves import BestOfN, Curve
from rmfast.report.best_of_n.words import best_rule, falls
from rmfast.report.plots import Plot, Theme, headroom

Key = tuple[str, Literal["-", "--", ":"], str, str]
"""Of a legend: colour, line, mark, label."""
MARKS = ("o", "s", "^", "D", "v")  # one a rule


def best_of_n_plots(found: BestOfN) -> list[Plot]:
    """One panel of members alone and, where there are several, one of rules."""
    plots = [members_plot(found)]
    return [*plots, rules_plot(found)] if found.rules else plots


def members_plot(found: BestOfN) -> Plot:
    """Every member's proxy and gold: of one with its interval, of several their spread."""
    several = len(found.members) > 1

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, found)
        for curve in found.members:
            _lines(axes, found.counts, curve, (theme.first, theme.second), interval=not several)
        proxy, gold = ("proxy, each member", "gold, each member") if several else ("proxy", "gold, 95 % interval")
        _legend(axes, found, theme, [(theme.second, "--", "", proxy), (theme.first, "-", "o", gold)])

    falling = [curve for curve in found.members if falls(curve)]
    last = found.counts[-1]
    if several:
        gain = float(np.mean([curve.gold[-1].value for curve in found.members]))
        title = f"Members alone: gold {gain:+.2f} std on average at N = {last}"
        title += f", and it falls for {len(falling)} of {len(found.members)}" if falling else ""
    else:
        gain = found.members[0].gold[-1].value
        title = f"Best of {last} by the proxy: gold {gain:+.2f} std{', past its peak' if falling else ''}"
    return Plot("members", title, NOTE, draw)


def rules_plot(found: BestOfN) -> Plot:
    """Proxy and gold of every rule that combines the members; gold's interval is that of the best rule."""
    best = best_rule(found)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = _axes(figure, found)
        colours = (theme.first, *theme.sets, theme.ink)
        keys: list[Key] = []
        for curve, colour, mark in zip(found.rules, colours, MARKS, strict=True):
            _lines(axes, found.counts, curve, (colour, colour), mark, interval=curve is best)
            keys.append((colour, "-", mark, curve.name))
        _legend(axes, found, theme, [*keys, (theme.third, "--", "", "proxy")])

    title = f"Rules: gold is highest for {best.name}, {best.gold[-1].value:+.2f} std at N = {found.counts[-1]}"
    return Plot("rules", title, NOTE, draw)


NOTE = (
    "Gain over a random response, in std over all responses. Gold that bends down while the proxy rises: the proxy "
    "is over-optimised."
)


def _axes(figure: Figure, found: BestOfN) -> Axes:
    """N on a logarithmic axis below, the bound of the KL divergence above."""
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(found.counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(n) for n in found.counts])
    axes.set(xlabel="N, responses to choose from", ylabel="Gain over a random one (std)")
    above = axes.secondary_xaxis("top")
    above.xaxis.set_major_locator(FixedLocator(found.counts))
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xticklabels([f"{kl:.2f}" for kl in found.kl], fontsize=8.5)
    above.set_xlabel("KL divergence from the policy, at most (nats)", fontsize=8.5)
    return axes


def _lines(
    axes: Axes, counts: Sequence[int], curve: Curve, colours: tuple[str, str], mark: str = "o", *, interval: bool
) -> None:
    """Gold as a line with marks, the proxy dashed; colours are gold's and the proxy's."""
    gold = [one.value for one in curve.gold]
    axes.plot(counts, [one.value for one in curve.proxy], color=colours[1], linestyle="--", linewidth=1.1, alpha=0.8)
    axes.plot(counts, gold, color=colours[0], marker=mark, markersize=4.5, linewidth=1.6)
    if interval:
        low, high = [one.low for one in curve.gold], [one.high for one in curve.gold]
        axes.fill_between(counts, low, high, color=colours[0], alpha=0.18, linewidth=0)


def _legend(axes: Axes, found: BestOfN, theme: Theme, keys: Sequence[Key]) -> None:
    """The ceiling, and the legend."""
    axes.plot(found.counts, [one.value for one in found.ceiling], color=theme.third, linestyle=":", linewidth=1.6)
    keys = [*keys, (theme.third, ":", "", "gold's best (ceiling)")]
    handles = [
        Line2D([], [], color=c, linestyle=line, marker=mark or None, label=label) for c, line, mark, label in keys
    ]
    headroom(axes, 0.5 if len(keys) > 4 else 0.35)
    axes.legend(handles=handles, loc="upper left", ncols=2 if len(keys) > 4 else 1, fontsize=8.5)
