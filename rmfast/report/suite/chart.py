"""Small inline SVG charts of a suite's page, one for both themes: lines with intervals. The template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rmfast.evaluation.diagnostics.report import ModelDiagnostics
from rmfast.evaluation.diagnostics.selection import Selection
from rmfast.report.suite.look import LIGHT_MODELS

Pair = tuple[float, float]
Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """A model's curve: its place, x [n], y [n], and low, high [n] where there are intervals."""

    model: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """A figure of lines; points that are not finite are left out.

    Attributes:
        labels, ranges: of x and y. ticks: of x and y, (value, text).
        rules: dashed lines to compare with, (x, y, x, y).
    """

    title: str
    note: str
    lines: Sequence[Line]
    labels: tuple[str, str]
    ranges: tuple[Pair, Pair]
    ticks: tuple[Ticks, Ticks]
    rules: Sequence[tuple[float, float, float, float]] = ()
    width: ClassVar[int] = 360
    height: ClassVar[int] = 250
    left: ClassVar[int] = 44
    right: ClassVar[int] = 338
    top: ClassVar[int] = 10
    bottom: ClassVar[int] = 210

    def x(self, value: float) -> float:
        """In pixels."""
        low, high = self.ranges[0]
        return round(self.left + (self.right - self.left) * (value - low) / max(high - low, 1e-12), 1)

    def y(self, value: float) -> float:
        """In pixels."""
        low, high = self.ranges[1]
        return round(self.bottom - (self.bottom - self.top) * (value - low) / max(high - low, 1e-12), 1)

    def known_rules(self) -> list[tuple[float, float, float, float]]:
        return [rule for rule in self.rules if np.isfinite(rule).all()]

    def points(self, line: Line) -> list[Pair]:
        return [(self.x(x), self.y(y)) for x, y in zip(line.x, line.y, strict=True) if np.isfinite(x + y)]

    def intervals(self, line: Line) -> list[tuple[float, float, float]]:
        """x, low and high; models side by side, so that intervals at one x do not cover each other."""
        shift = 2.5 * (line.model % len(LIGHT_MODELS)) - 2.5 * (min(len(self.lines), len(LIGHT_MODELS)) - 1) / 2
        ends = zip(line.x, line.y, line.low, line.high, strict=False)
        return [
            (round(self.x(x) + shift, 1), self.y(low), self.y(high))
            for x, y, low, high in ends
            if np.isfinite(x + y + low + high)
        ]

    def letters(self) -> list[tuple[int, float, float]]:
        """Model and place of the letter at each line's end; letters that would cover each other move down."""
        ends = [(*points[-1], line.model) for line in self.lines if (points := self.points(line))]
        out, last = [], float("-inf")
        for x, y, model in sorted(ends, key=lambda end: end[1]):
            last = max(last + 12, y)
            out.append((model, round(x + 7, 1), round(last + 4, 1)))
        return out


def length_charts(models: Sequence[ModelDiagnostics], part: str, units: dict[str, list[int]]) -> list[Chart]:
    """Accuracy by difference of length, a chart for each unit: lengths of different units share no axis."""
    charts = []
    for unit, places in units.items():
        curves = {i: models[i].length[part].by_difference for i in places if part in models[i].length}
        bins = next(iter(curves.values()), [])
        if not bins:
            continue
        middles = [(number, f"{(b.start + b.end) / 2:+.0f}") for number, b in enumerate(bins, 1)]
        charts.append(
            Chart(
                f"Accuracy by difference of length: {'all pairs' if part == 'all' else part}",
                "Pairs in equal groups by how much longer the better response is. A rising curve: length decides.",
                [Line(i, range(1, len(curve) + 1), *_columns(curve, "value")) for i, curve in curves.items()],
                labels=(f"Length of better less that of worse ({unit})", "Right (%)"),
                ranges=((0.5, len(bins) + 0.5), (0.0, 1.0)),
                ticks=(middles[:: -(-len(bins) // 6)], share_ticks()),
                rules=[(0.5, 0.5, len(bins) + 0.5, 0.5)],
            )
        )
    return charts


def calibration_chart(models: Sequence[ModelDiagnostics], part: str) -> Chart:
    """Shares that won by predicted probability."""
    curves = {i: m.calibration[part].curve for i, m in enumerate(models) if m.calibration and part in m.calibration}
    return Chart(
        part,
        "On the diagonal: as sure as it is right. Flatter: too sure. Steeper: too shy.",
        [Line(i, [b.predicted for b in curve], *_columns(curve, "observed")) for i, curve in curves.items()],
        labels=("Predicted probability that a response wins (%)", "Share that won (%)"),
        ranges=((0.0, 1.0), (0.0, 1.0)),
        ticks=(share_ticks(), share_ticks()),
        rules=[(0.0, 0.0, 1.0, 1.0)],
    )


def votes_chart(models: Sequence[ModelDiagnostics], part: str) -> Chart:
    """Accuracy by the number of votes."""
    curves = {i: m.votes[part] for i, m in enumerate(models) if m.votes and part in m.votes}
    low, high = reach([value for curve in curves.values() for value in curve], 0.02)
    low, high = max(low, 0.0), min(high, 1.0)
    most = max(map(len, curves.values()))
    return Chart(
        part,
        "Accuracy of the majority of so many votes; as many for as against are a tie, which loses.",
        [Line(i, range(1, len(curve) + 1), curve) for i, curve in curves.items()],
        labels=("Votes", "Right (%)"),
        ranges=((0.5, most + 0.5), (low, high)),
        ticks=(count_ticks(most), share_ticks(low, high)),
    )


def selection_chart(found: Selection) -> Chart:
    """Gold score of picks by the number of candidates."""
    gold, level, most = found.gold_curve, found.random, found.most
    low, high = reach([level, *gold, *(value for model in found.models for value in model.curve)], 0.05)
    steps = [(k + 1.0, gold[k], k + 2.0, gold[k + 1]) for k in range(len(gold) - 1)]
    return Chart(
        "Gold score of the answer that each model picks",
        "Rising dashes: the gold scorer's pick. Level dashes: a random pick.",
        [Line(i, range(1, len(model.curve) + 1), model.curve) for i, model in enumerate(found.models)],
        labels=("Candidates to choose from, n", "Gold score of the pick"),
        ranges=((0.5, most + 0.5), (low, high)),
        ticks=(count_ticks(most), number_ticks(low, high)),
        rules=[*steps, (0.5, level, most + 0.5, level)],
    )


def _columns(bins: Sequence[object], key: str) -> tuple[list[float], list[float], list[float]]:
    """y, low and high of a curve's bins."""
    y, low, high = ([getattr(one, name) for one in bins] for name in (key, "low", "high"))
    return y, low, high


def count_ticks(most: int) -> Ticks:
    """Some of the counts from 1 to `most`."""
    return [(float(n), str(n)) for n in range(1, most + 1, max(1, round(most / 8)))]


def share_ticks(low: float = 0.0, high: float = 1.0) -> Ticks:
    """Ticks of shares in per cent."""
    gap = 0.2 if high - low > 0.5 else 0.1 if high - low > 0.25 else 0.05
    first = max(low, np.ceil(low / gap - 1e-9) * gap) + 0.0
    return [(float(v), f"{100 * v:.0f}") for v in np.arange(first, high + 1e-9, gap)]


def number_ticks(low: float, high: float, count: int = 5) -> Ticks:
    """Round numbers from low to high."""
    rough = max(high - low, 1e-9) / count
    power = 10.0 ** np.floor(np.log10(rough))
    gap = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    return [(float(v), f"{v + 0.0:.6g}") for v in np.arange(np.ceil(low / gap - 1e-9), high / gap + 1e-9) * gap]


def reach(values: Sequence[float], margin: float) -> Pair:
    """Least and greatest finite value with a margin of the span around them."""
    known = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    pad = max(margin * (max(known) - min(known)), margin)
    return min(known) - pad, max(known) + pad
