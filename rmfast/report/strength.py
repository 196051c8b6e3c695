"""The histogram of preference strengths, coloured by what is done to the edges."""

import numpy as np
from matplotlib.figure import Figure

from rmfast.data.denoise import Treatment
from rmfast.report.plots import BINS, Plot, Theme
from rmfast.report.summary import percent


def strength_plot(strength: np.ndarray, treatment: Treatment) -> Plot:
    """The strengths of E edges as they came, and what became of each edge. At least one must have a strength.

    Args:
        strength: [E], nan where there is none.
    """
    known, dropped, flipped = treatment.known, treatment.dropped, treatment.flipped
    smoothed = treatment.smoothed & known & ~flipped
    parts = {
        "flipped": flipped,
        "smoothed" if treatment.options.smooth else "soft label": smoothed,
        "dropped": dropped,
        "the rest": known & ~dropped & ~flipped & ~smoothed,
    }
    values = strength[known].astype(np.float64)

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots()
        # Bins meet at zero, so that none mixes both signs.
        width = max(float(np.ptp(np.append(values, 0.0))) / BINS, 1e-9)
        edges = width * np.arange(np.floor(values.min() / width), np.floor(values.max() / width) + 2)
        colours = (theme.second, theme.sets[1], theme.faint, theme.first)
        looks = zip(parts.items(), colours, ("///", "", "xxx", ""), strict=True)
        below = np.zeros(len(edges) - 1)
        for (label, mask), colour, hatch in looks:
            if not mask.any():
                continue
            height, _ = np.histogram(strength[mask].astype(np.float64), edges)
            bars = axes.bar(edges[:-1], height, width, below, align="edge", color=colour, hatch=hatch)
            bars.set_label(f"{label}: {mask.sum():,}")
            for bar in bars:
                bar.set(edgecolor=theme.paper, linewidth=0.3)
            below += height
        axes.axvline(0, color=theme.ink, linewidth=1)
        axes.set(ylim=(0, 1.3 * below.max()), xlabel="Strength: mean of r(better) - r(worse)", ylabel="Edges")
        axes.legend(loc="upper right")

    title = f"{percent(float((values < 0).mean()))} of {len(values):,} strengths are below zero"
    return Plot("strength", title, "Strengths as they came; colours say what the treatment does.", draw)
