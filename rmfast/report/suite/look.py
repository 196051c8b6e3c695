"""The look of a suite's page: its style, a diverging scale that colour-blind readers can read, models by letter."""

import re
from collections.abc import Sequence
from html import escape
from typing import Any, Protocol

import numpy as np

STEPS = 7  # of the scale, on each side of its middle
# From far below the middle to far above it: orange, grey, blue. In the dark the ends are bright, not the middle.
LIGHT_STOPS = ("#8f3a00", "#e8893a", "#fbd9b8", "#f1f1ef", "#bfdcf2", "#4f9fd8", "#0a4a86")
DARK_STOPS = ("#ffb066", "#b5652a", "#573720", "#2a3038", "#21425f", "#2f7fbd", "#8fd0ff")
LIGHT_MODELS = ("#0072b2", "#c04d00", "#00795a", "#a8457f", "#7a6200", "#5b54c4")
DARK_MODELS = ("#56b4e9", "#f09a3e", "#2dbe94", "#e08fc0", "#e5d44a", "#a9a4ff")


def text(value: Any) -> str:
    """Escaped for HTML. Characters that HTML forbids are shown by their symbols: a page must show any text as it is."""
    return escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", _symbol, str(value).replace("\r\n", "\n")))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd" if code >= 0xD800 else f"\\x{code:02x}"


def letter(index: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[index % 26] + (str(index // 26) if index >= 26 else "")


def tone(index: int) -> str:
    """Class of the model's colour; letters tell apart what colours do not."""
    return f"m{index % len(LIGHT_MODELS)}"


def chip(index: int) -> str:
    """The model's letter in its colour."""
    return f'<b class="chip {tone(index)}">{letter(index)}</b>'


def points(value: float) -> str:
    """A share in per cent without the sign, as in a heat map."""
    return f"{100 * value:.1f}" if np.isfinite(value) else "–"


class Interval(Protocol):
    """What has an interval: a cell, a figure, a share."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


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


def _theme(stops: Sequence[str], models: Sequence[str]) -> str:
    scale = "".join(f".h{i}{{background:{paper};color:{ink}}}" for i, (paper, ink) in enumerate(colours(stops)))
    return scale + "".join(f".m{i}{{--own:{own};--on:{ink_on(own)}}}" for i, own in enumerate(models))


def scale_bar(first: int = 0, last: int = 2 * STEPS) -> str:
    """The scale's colours in a row, from one step to another."""
    steps = "".join(f'<i class="h{i}"></i>' for i in range(first, last + 1))
    return f'<span class="bar" aria-hidden="true">{steps}</span>'


STYLE = (
    f"""
{_theme(LIGHT_STOPS, LIGHT_MODELS)}
@media (prefers-color-scheme: dark) {{ {_theme(DARK_STOPS, DARK_MODELS)} }}
"""
    + """
h3 { font-size: 1rem; margin: 1rem 0 .4rem; }
.lead { max-width: 46rem; }
.chip { display: inline-block; min-width: 1.35em; padding: 0 .3em; border-radius: .3em; text-align: center;
  background: var(--own); color: var(--on); font-size: .85em; line-height: 1.45; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; margin: .4rem 0; padding: 0; }
.key li { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.cards .card:only-child { max-width: 40rem; }
.cards .card { border-top: 5px solid var(--own); overflow-wrap: anywhere; }
.cards table { margin-top: .6rem; }
.cards th, .cards td { font-size: .88rem; }
.cards th { font-weight: 600; overflow-wrap: normal; }
.cards td small, .scroll small { display: block; color: var(--soft); font-size: .78rem; }
.cards th:first-child, .cards td:first-child { min-width: 6.3rem; overflow-wrap: break-word; }
.cards th, .cards td { padding-right: .35rem; }
.big small { font-size: .95rem; font-weight: 400; color: var(--soft); }
.note { border-left: 6px solid var(--bad); }
.note ul { margin: .2rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.bar { display: inline-flex; vertical-align: middle; margin: 0 .4rem; border: 1px solid var(--line); }
.bar i { width: .75rem; height: .8rem; }
.map { overflow: auto; max-height: 85vh; padding: 0; width: fit-content; max-width: 100%; }
.map table { border-collapse: separate; border-spacing: 0; width: auto; }
.map td { width: 6rem; }
.map th, .map td { padding: .3rem .45rem; border: 0; border-right: 1px solid var(--card);
  border-bottom: 1px solid var(--card); text-align: center; min-width: 3.4rem; }
.map tbody th, .map thead tr:first-child th:first-child { position: sticky; left: 0; z-index: 1; text-align: left;
  background: var(--card); min-width: 9rem; max-width: 22rem; font-weight: 400; white-space: normal;
  overflow-wrap: anywhere; border-right: 1px solid var(--line); }
.map tbody th { padding-left: calc(.6rem + .9rem * var(--in, 0)); }
.map tbody th small { color: var(--soft); font-size: .75rem; white-space: nowrap; }
.map thead { position: sticky; top: 0; z-index: 2; background: var(--card); }
.map thead th { vertical-align: middle; text-align: center; font-size: .85rem; background: var(--card); }
.map thead th:first-child { border-right: 1px solid var(--line); }
.map thead tr:last-child th { border-bottom: 1px solid var(--line); }
.map .d0 th, .map .d0 td, .map .d1 th, .map .d1 td { font-weight: 700; }
.map .d1 th, .map .d1 td { border-top: 2px solid var(--line); }
.map .d2 th { font-weight: 600; }
.map .leaf th { font-weight: 400; }
.map .first { border-left: 3px solid var(--card); }
.map .unsure { font-style: italic; font-weight: 400; }
.map td.none { color: var(--soft); }
.matrix { border-collapse: separate; border-spacing: 2px; width: auto; }
.matrix th, .matrix td { border: 0; padding: .3rem .5rem; text-align: center; min-width: 3.6rem; }
.matrix th:first-child { min-width: 2rem; }
.half { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.card + .plots, .plots + .card, .plots + details, .key + .card { margin-top: .8rem; }
.scroll, .card.scroll { padding: .2rem .6rem .2rem 0; }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; background: var(--card);
  padding-left: .8rem; overflow-wrap: break-word; }
.scroll th:first-child:empty, .scroll td:first-child:has(> .chip) { min-width: 0; }
.panel { padding: .8rem; }
.panel h3, figure h3 { margin: .1rem 0 .3rem; }
.group { display: grid; grid-template-columns: 9.5rem 1fr 8.4rem; gap: 0 .6rem; align-items: center; padding: .22rem 0;
  border-top: 1px solid var(--line); font-size: .84rem; line-height: 1.25; }
.group > span { overflow-wrap: anywhere; }
.group ol { list-style: none; margin: 0; padding: 0; font-size: .75rem; line-height: 16px;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.group ol small { color: var(--soft); font-size: .7rem; }
.goal { font-weight: 700; margin: .7rem 0 .2rem; }
.bars { display: block; width: 100%; overflow: visible; }
.bars rect { fill: var(--own); opacity: .75; }
.bars .ci { stroke: var(--ink); stroke-width: 1.5; }
.bars .mid { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3; }
.bars .edge { stroke: var(--line); stroke-width: 1; }
.axis { color: var(--soft); font-size: .72rem; padding: 0; border: 0; }
.axis div { display: flex; justify-content: space-between; }
.chart { display: block; width: 100%; max-width: 29rem; height: auto; font: 11.5px system-ui, sans-serif; }
.chart text { fill: var(--soft); }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .mid { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.chart .line { stroke: var(--own); stroke-width: 2; fill: none; stroke-linejoin: round; }
.chart .dot { fill: var(--own); }
.chart .ci { stroke: var(--own); stroke-width: 1.3; opacity: .6; }
.chart .name { fill: var(--own); font-weight: 700; }
.spread { display: block; width: 100%; min-width: 8rem; height: 18px; overflow: visible; }
.spread .whisker { stroke: var(--own); stroke-width: 1.5; }
.spread rect { fill: var(--own); opacity: .45; }
.spread .median { stroke: var(--ink); stroke-width: 2; }
.spread .mid { stroke: var(--soft); stroke-dasharray: 3 3; }
details.card { margin: .6rem 0; padding: .7rem 1rem; }
details .card { box-shadow: none; }
summary small { font-weight: 400; color: var(--soft); }
summary { overflow-wrap: anywhere; }
.row { border-top: 1px solid var(--line); padding: .5rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
.pair > *, .ask { min-width: 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem .7rem; font-size: .9rem; line-height: 1.45; max-height: 32rem; overflow: auto;
  unicode-bidi: plaintext; }
.better .text { border-left: 4px solid var(--good); }
.worse .text { border-left: 4px solid var(--bad); }
.what { font-size: .82rem; color: var(--soft); margin: .5rem 0 .2rem; overflow-wrap: anywhere; }
@media (max-width: 44rem) { .pair { grid-template-columns: 1fr; gap: 0; }
  .group { grid-template-columns: 1fr 8.2rem; } .group > span { grid-column: 1 / -1; font-weight: 600; }
  .map th, .map td { padding: .28rem .3rem; min-width: 2.9rem; }
  .map tbody th, .map thead tr:first-child th:first-child { min-width: 8rem; max-width: 8.4rem;
    hyphens: auto; overflow-wrap: break-word; padding-left: calc(.4rem + .45rem * var(--in, 0)); }
  .map tbody th small { display: block; }
  .card { padding: .7rem; } .map.card { padding: 0; } details.card { padding: .6rem .7rem; } }
@media (min-width: 70rem) { .map.fits { overflow: visible; max-height: none; } }
@media print { .map, .text { max-height: none; overflow: visible; } }
"""
)
