"""An ensemble's plots: how strong preferences are, how far members agree, and what strength tells of held-out pairs."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rmfast.data.denoise import Denoised
from rmfast.data.edge_columns import Edges
from rmfast.evaluation.combine import agreement, mean_agreement
from rmfast.evaluation.metrics import Floats, wilson
from rmfast.report.plots import Plot, Theme, bins_at_zero
from rmfast.report.summary import percent

GROUPS = 20  # of the std by mean, as in Part II, figure 2
DECILES = 10
SHOWN = 0.995  # share of strengths that a histogram shows: a few far ones would flatten all others


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Strengths of E edges over M members: `mean` and `std` [E] of the finite ones, which `gaps` [M, E] are of (nan
    where a member did not score), and the number of edges whose strength is not finite."""

    mean: Floats
    std: Floats
    gaps: Floats
    broken: int

    @classmethod
    def of(cls, gaps: Floats, judged: np.ndarray) -> "Strengths":
        """From gaps r(better) - r(worse) [M, E] and who scored what, bool [M, E]; equation 4 of Part II."""
        count = judged.sum(0)
        values = np.where(judged, gaps, 0.0)
        mean = values.sum(0) / count
        std = np.sqrt(np.where(judged, np.square(values - mean), 0.0).sum(0) / count)
        known = np.isfinite(mean) & np.isfinite(std)
        return cls(mean=mean[known], std=std[known], gaps=gaps[:, known], broken=int((~known).sum()))

    @property
    def negative_share(self) -> float:
        return float((self.mean < 0).mean()) if self.mean.size else float("nan")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rewards [M, R] that the members give held-out responses, and the edges."""

    rewards: Floats
    edges: Edges

    @classmethod
    def of(cls, rewards: Floats, edges: Edges) -> "HeldOut":
        return cls(rewards=rewards, edges=edges)

    @property
    def gaps(self) -> Floats:
        """r(better) - r(worse) [M, E], of edges that every member gives a finite one."""
        gaps = self.rewards[:, self.edges.better] - self.rewards[:, self.edges.worse]
        return gaps[:, np.isfinite(gaps).all(0)]


def ensemble_plots(strengths: Strengths, held_out: dict[str, HeldOut]) -> list[Plot]:
    """Every plot that there is data for, in reading order."""
    plots = [mean_plot(strengths), std_plot(strengths)]
    if held_out:
        for name, of_set in held_out.items():
            prefix, suffix = (f"{name}-", f" ({name})") if len(held_out) > 1 else ("", "")
            plots.append(agreement_plot(of_set.gaps, "held-out pairs" + suffix, prefix))
            plots.append(decile_plot(of_set.gaps, prefix, suffix))
    else:
        plots.append(agreement_plot(strengths.gaps, "training pairs", ""))
    return [plot for plot in plots if plot is not None]


def mean_plot(strengths: Strengths) -> Plot | None:
    """Histogram of the strengths' means."""
    mean = strengths.mean
    if not mean.size:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        low, high = np.quantile(mean, [(1 - SHOWN) / 2, (1 + SHOWN) / 2])
        bins = bins_at_zero(float(low), float(high))
        inside = np.clip(mean, bins[0], bins[-1])
        for part, colour, label in (
            (inside[mean >= 0], theme.first, f"label agrees: {int((mean >= 0).sum()):,}"),
            (inside[mean < 0] - (bins[1] - bins[0]) / 1e6, theme.second, f"label disagrees: {int((mean < 0).sum()):,}"),
        ):
            hatch = "///" if colour == theme.second else None
            axes.hist(part, bins.tolist(), color=colour, alpha=0.85, hatch=hatch, label=label)
        low_y, high_y = axes.get_ylim()
        axes.set_ylim(low_y, 1.3 * high_y)
        axes.axvline(0, ymax=0.76, color=theme.ink, linewidth=1)
        axes.set(xlabel="Strength: mean of r(better) - r(worse)", ylabel="Preferences")
        axes.legend(loc="upper left")

    title = f"{percent(strengths.negative_share)} of {mean.size:,} preferences have strength below\u00a00"
    return Plot("strength", title, "Below zero the members together prefer the reply that the label rejects.", draw)


def std_plot(strengths: Strengths) -> Plot | None:
    """Mean std of edges in 20 groups by their mean (Part II, figure 2)."""
    mean, std = strengths.mean, strengths.std
    groups = min(GROUPS, mean.size)
    if not groups:
        return None
    parts = np.array_split(np.argsort(mean, kind="stable"), groups)
    centres = np.array([mean[part].mean() for part in parts])
    heights = np.array([std[part].mean() for part in parts])

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        place = np.arange(1, groups + 1)
        colours = [theme.second if centre < 0 else theme.first for centre in centres]
        axes.bar(place, heights, color=colours, hatch=["///" if c < 0 else "" for c in centres])
        shown = np.unique(np.linspace(1, groups, min(groups, 5)).round().astype(int))
        axes.set_xticks(shown, [f"{p}\n({centres[p - 1]:+.2g})" for p in shown])
        axes.set(xlabel="Group by strength, weakest first (its mean strength)", ylabel="Mean std over members")

    lowest = int(heights.argmin())
    title = f"Members differ least in group {lowest + 1} of {groups} ({centres[lowest]:+.2g})"
    return Plot("strength-std", title, "Hatched: groups of negative strength.", draw)


def agreement_plot(gaps: Floats, what: str, prefix: str) -> Plot | None:
    """Heat map of the share of edges on which two members prefer the same side."""
    shares = agreement(gaps)
    off = ~np.eye(len(shares), dtype=bool)
    known = shares[off][np.isfinite(shares[off])]
    if not known.size:
        return None

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        axes.grid(False)
        shown = np.ma.masked_invalid(np.where(off, shares, np.nan))
        low, high = min(0.5, float(known.min())), 1.0
        image = axes.imshow(shown, cmap="viridis", vmin=low, vmax=high)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(10, integer=True))
        bar = figure.colorbar(image, ax=axes)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(shares) <= 12:
            for i, j in np.argwhere(off & np.isfinite(shares)):
                bright = shares[i, j] > low + 0.6 * (high - low)
                colour = "black" if bright else "white"
                axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set(xlabel="Member", ylabel="Member")

    title = f"Two members agree on {percent(mean_agreement(gaps))} of {what}"
    return Plot(f"{prefix}agreement", title, "Share of preferences on which both prefer the same reply.", draw)


def decile_plot(gaps: Floats, prefix: str = "", suffix: str = "") -> Plot | None:
    """Held-out accuracy in tenths by |strength|, of gaps [M, E]: of the members together and of a single one."""
    members, edges = gaps.shape
    deciles = min(DECILES, edges)
    if not deciles:
        return None
    mean = gaps.mean(0)
    parts = np.array_split(np.argsort(np.abs(mean), kind="stable"), deciles)
    right = np.array([(mean[part] > 0).mean() for part in parts])
    single = np.array([(gaps[:, part] > 0).mean() for part in parts])
    band = np.array([wilson(float((mean[part] > 0).sum()), len(part)) for part in parts])

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        place = np.arange(1, deciles + 1)
        axes.axhline(0.5, color=theme.third, linestyle=":", label="a coin")
        axes.plot(place, single, color=theme.second, marker="s", markersize=4, linestyle="--", label="a single member")
        axes.vlines(place, band[:, 0], band[:, 1], color=theme.first, linewidth=1.4)
        label = f"mean of {members}, 95 % intervals"
        axes.plot(place, right, color=theme.first, marker="o", markersize=5, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_ylim(0.0, 1.25)
        axes.set_yticks(np.linspace(0, 1, 6).tolist())
        axes.set(xlabel="Tenth of the pairs by |strength|, weakest first", ylabel="Pairs ranked right (%)")
        axes.legend(loc="upper left", ncols=2)

    title = f"Held-out accuracy {percent(right[0])} in the weakest tenth, {percent(right[-1])} in the strongest{suffix}"
    return Plot(f"{prefix}deciles", title, "It rises where strength tells how sure one may be.", draw)


def strength_plot(strength: np.ndarray, denoised: Denoised) -> Plot:
    """The strengths of E edges before denoising, and what that does to each. At least one must have a strength.

    Args:
        strength: [E], nan where there is none.
    """
    known, dropped, flipped = denoised.known, denoised.dropped, denoised.flipped
    smoothed = denoised.smoothed & known & ~flipped
    parts = {
        "flipped": flipped,
        "smoothed" if denoised.options.smooth else "soft label": smoothed,
        "dropped": dropped,
        "the rest": known & ~dropped & ~flipped & ~smoothed,
    }
    values = strength[known].astype(np.float64)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        edges = bins_at_zero(values.min(), values.max())
        colours = (theme.second, theme.sets[1], theme.faint, theme.first)
        looks = zip(parts.items(), colours, ("///", "", "xxx", ""), strict=True)
        below = np.zeros(len(edges) - 1)
        for (label, mask), colour, hatch in looks:
            if not mask.any():
                continue
            height, _ = np.histogram(strength[mask].astype(np.float64), edges)
            bars = axes.bar(edges[:-1], height, np.diff(edges), below, align="edge", color=colour, hatch=hatch)
            bars.set_label(f"{label}: {mask.sum():,}")
            for bar in bars:
                bar.set(edgecolor=theme.paper, linewidth=0.3)
            below += height
        axes.axvline(0, color=theme.ink, linewidth=1)
        axes.set(ylim=(0, 1.3 * below.max()), xlabel="Strength: mean of r(better) - r(worse)", ylabel="Edges")
        axes.legend(loc="upper right")

    title = f"{percent(float((values < 0).mean()))} of {len(values):,} strengths are below zero"
    return Plot("strength", title, "Strengths before denoising; colours say what it does.", draw)
