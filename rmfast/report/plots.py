"""How plots are drawn: matplotlib's Agg canvas, two themes, colours that colour-blind readers tell apart.

The colours are Okabe and Ito's. Nothing global is touched: no pyplot, no backend.
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

from rmfast.outputs.kinds import PICTURE_SOFTWARE
from rmfast.report.run_folder import Floats

INCHES = (4.8, 3.5)  # so that the text stays readable where a phone shows the picture 340 pixels wide
DPI = 170
BINS = 40  # of a histogram


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


def bins_at_zero(low: float, high: float) -> Floats:
    """Edges of about BINS bins from low to high that meet at zero, so that none mixes both signs."""
    low, high = min(low, 0.0), max(high, 0.0)
    width = max((high - low) / BINS, 1e-9)
    return width * np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 2)


def headroom(axes: Axes, share: float = 0.3) -> None:
    """Room for the legend above the data, as a share of their height."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + share * (high - low))
