"""Figures and colours of a suite's page: a diverging scale that colour-blind readers can read, models by letter."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from markupsafe import Markup

STEPS = 7  # of the scale, on each side of its middle
# From far below the middle to far above it: orange, grey, blue. In the dark the ends are bright, not the middle.
LIGHT_STOPS = ("#8f3a00", "#e8893a", "#fbd9b8", "#f1f1ef", "#bfdcf2", "#4f9fd8", "#0a4a86")
DARK_STOPS = ("#ffb066", "#b5652a", "#573720", "#2a3038", "#21425f", "#2f7fbd", "#8fd0ff")
LIGHT_MODELS = ("#0072b2", "#c04d00", "#00795a", "#a8457f", "#7a6200", "#5b54c4")
DARK_MODELS = ("#56b4e9", "#f09a3e", "#2dbe94", "#e08fc0", "#e5d44a", "#a9a4ff")


def letter(index: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index % 26] + (str(index // 26) if index >= 26 else "")


def tone(index: int) -> str:
    """Class of the model's colour; letters tell apart what colours do not."""
    return f"m{index % len(LIGHT_MODELS)}"


def points(value: float) -> str:
    """A share in per cent without the sign, as in a heat map."""
    return f"{100 * value:.1f}" if np.isfinite(value) else "–"


class Interval(Protocol):
    """What has an interval: a cell, a figure, a share."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def share_words(value: float) -> str:
    """A share in per cent with the sign."""
    return f"{points(value)} %" if np.isfinite(value) else "unknown"


def plain(value: float, signed: bool = False) -> str:
    return "–" if not np.isfinite(value) else f"{value:+.2f}" if signed else f"{value:.2f}"


def p_value(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def along(value: float, low: float = 0.0, high: float = 1.0) -> str:
    """Where a value is from low to high, in per cent of the width."""
    return f"{100 * float(np.clip((value - low) / max(high - low, 1e-12), 0, 1)):.2f}%"


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def span(figure: Interval | None) -> str:
    """ "[43.1, 47.9]" of what has `low` and `high`; "" where they are unknown."""
    known = figure is not None and np.isfinite(figure.low + figure.high)
    return f"[{points(figure.low)}, {points(figure.high)}]" if figure is not None and known else ""


def step(value: float, middle: float, reach: float) -> str:
    """Class of a cell's colour: h0 at `middle` - `reach`, h7 at the middle, h14 at `middle` + `reach`."""
    if not np.isfinite(value - middle):
        return "none"
    return f"h{STEPS + round(STEPS * float(np.clip((value - middle) / reach, -1, 1)))}"


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, 1 to 21."""
    dark, light = sorted(_luminance(_rgb(colour)) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def colours(stops: Sequence[str]) -> list[tuple[str, str]]:
    """The scale's 2 STEPS + 1 pairs of background and ink."""
    table = np.array([_rgb(stop) for stop in stops])
    place = np.linspace(0, len(stops) - 1, 2 * STEPS + 1)
    mixed = np.stack([np.interp(place, np.arange(len(stops)), column) for column in table.T], 1)
    papers = ["#" + "".join(f"{round(255 * value):02x}" for value in row) for row in mixed]
    return [(paper, ink_on(paper)) for paper in papers]


def ink_on(paper: str) -> str:
    """Black or white, whichever is read more easily on the colour: a contrast of 4.58 at least."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, paper))


def _rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _luminance(rgb: Sequence[float]) -> float:
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def theme() -> Markup:
    """The style of the scale's colours and of the models, in both schemes."""
    light, dark = _theme(LIGHT_STOPS, LIGHT_MODELS), _theme(DARK_STOPS, DARK_MODELS)
    return Markup(f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n")


def _theme(stops: Sequence[str], models: Sequence[str]) -> str:
    scale = "".join(f".h{i}{{background:{paper};color:{ink}}}" for i, (paper, ink) in enumerate(colours(stops)))
    return scale + "".join(f".m{i}{{--model:{model};--on:{ink_on(model)}}}" for i, model in enumerate(models))
