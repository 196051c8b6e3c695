"""Small inline SVG charts of a suite's page: lines with intervals, and spreads of rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmfast.report.suite.look import LIGHT_MODELS, letter, text, tone

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 22, 10, 40


@dataclass(frozen=True)
class Line:
    """A model's curve: its place, x [n], y [n], and low, high [n] where there are intervals."""

    model: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False


def line_chart(
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    labels: tuple[str, str],
    ranges: tuple[tuple[float, float], tuple[float, float]],
    ticks: tuple[Sequence[tuple[float, str]], Sequence[tuple[float, str]]],
    rules: Sequence[tuple[float, float, float, float]] = (),
) -> str:
    """A figure with each model's letter at the end of its line; points that are not finite are left out.

    Args:
        labels: of x and y. ranges: of x and y. ticks: of x and y, (value, text).
        rules: dashed lines to compare with, (x, y, x, y).
    """
    (x0, x1), (y0, y1) = ranges

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x0) / max(x1 - x0, 1e-12)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y0) / max(y1 - y0, 1e-12)

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    marks = []
    for value, label in ticks[1]:
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>')
        marks.append(f'<text x="{LEFT - 6}" y="{py(value) + 4:.1f}" text-anchor="end">{text(label)}</text>')
    for value, label in ticks[0]:
        marks.append(f'<line class="grid" x1="{px(value):.1f}" x2="{px(value):.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        marks.append(f'<text x="{px(value):.1f}" y="{bottom + 17}" text-anchor="middle">{text(label)}</text>')
    for ax, ay, bx, by in (rule for rule in rules if np.isfinite(rule).all()):
        marks.append(f'<line class="mid" x1="{px(ax):.1f}" y1="{py(ay):.1f}" x2="{px(bx):.1f}" y2="{py(by):.1f}"/>')
    ends: list[tuple[float, float, Line]] = []
    for line in lines:
        x, y = (np.asarray(value, dtype=np.float64) for value in (line.x, line.y))
        known = np.isfinite(x + y)
        if not known.any():
            continue
        own = [(px(a), py(b)) for a, b in zip(x[known], y[known], strict=True)]
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        marks.append(f'<g class="{tone(line.model)}">')
        if line.low is not None and line.high is not None:
            low, high = (np.asarray(value, dtype=np.float64)[known] for value in (line.low, line.high))
            # Side by side, so that models' intervals at one x do not cover each other.
            shift = 2.5 * (line.model % len(LIGHT_MODELS)) - 2.5 * (min(len(lines), len(LIGHT_MODELS)) - 1) / 2
            marks += [
                f'<line class="ci" x1="{a + shift:.1f}" x2="{a + shift:.1f}" y1="{py(m):.1f}" y2="{py(n):.1f}"/>'
                for (a, _), m, n in zip(own, low, high, strict=True)
                if np.isfinite(m + n)
            ]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in own)
        marks.append(f'<polyline class="line" points="{path}"{dash}/>')
        marks += [f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in own if not line.dashed]
        marks.append("</g>")
        if not line.dashed:
            ends.append((own[-1][1], own[-1][0], line))
    last = float("-inf")
    for place, side, line in sorted(ends, key=lambda end: end[0]):
        last = max(last + 12, place)  # letters that would cover each other move down
        marks.append(
            f'<text class="name {tone(line.model)}" x="{side + 7:.1f}" y="{last + 4:.1f}">{letter(line.model)}</text>'
        )
    middle = (TOP + bottom) / 2
    marks.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{text(labels[0])}</text>')
    marks.append(f'<text transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{text(labels[1])}</text>')
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}"'
    return (
        f'<figure class="card"><h3>{text(title)}</h3><svg class="chart" {box}>{"".join(marks)}</svg>'
        f"<figcaption>{text(note)}</figcaption></figure>"
    )


def share_ticks(low: float = 0.0, high: float = 1.0) -> list[tuple[float, str]]:
    """Ticks of shares in per cent."""
    gap = 0.2 if high - low > 0.5 else 0.1 if high - low > 0.25 else 0.05
    first = max(low, np.ceil(low / gap - 1e-9) * gap) + 0.0
    return [(float(v), f"{100 * v:.0f}") for v in np.arange(first, high + 1e-9, gap)]


def number_ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Round numbers from low to high."""
    rough = max(high - low, 1e-9) / count
    power = 10.0 ** np.floor(np.log10(rough))
    gap = next(power * own for own in (1, 2, 5, 10) if power * own >= rough * 0.999)
    return [(float(v), f"{v + 0.0:.6g}") for v in np.arange(np.ceil(low / gap - 1e-9), high / gap + 1e-9) * gap]


def spread(model: int, values: Sequence[float], low: float, high: float, middle: float) -> str:
    """A row's box from its q25 to its q75, whisker from its q05 to its q95 and median: values are these five."""

    def place(value: float) -> str:
        return f"{100 * float(np.clip((value - low) / max(high - low, 1e-12), 0, 1)):.2f}%"

    if not np.isfinite(values).all():
        return "–"
    q05, q25, median, q75, q95 = values
    width = f"{100 * (min(q75, high) - max(q25, low)) / max(high - low, 1e-12):.2f}%"
    return (
        f'<svg class="spread {tone(model)}" aria-hidden="true">'
        f'<line class="mid" x1="{place(middle)}" x2="{place(middle)}" y1="0" y2="18"/>'
        f'<line class="whisker" x1="{place(q05)}" x2="{place(q95)}" y1="9" y2="9"/>'
        f'<rect x="{place(q25)}" y="3" width="{width}" height="12"/>'
        f'<line class="median" x1="{place(median)}" x2="{place(median)}" y1="2" y2="16"/></svg>'
    )
