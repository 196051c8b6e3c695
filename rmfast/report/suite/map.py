"""The heat map over a suite's groups, the bars beside it, and every figure in full."""

from collections.abc import Sequence

import numpy as np

from rmfast.evaluation.suites.base import Cell
from rmfast.report.suite.cells import Grid, Path_
from rmfast.report.suite.look import STEPS, chip, letter, points, scale_bar, span, step, text, tone

ROW = 16  # pixels of a bar
COLUMNS = 9  # of the heat map, that a desktop shows without scrolling inside it
OPEN = 40  # groups whose bars are shown unfolded


def heat_map(grid: Grid, names: Sequence[str]) -> str:
    """Accuracy as colour and number: groups down, parts and models across."""
    middles = {part: _middle(grid, part) for part in grid.parts}
    fits = " fits" if len(grid.parts) * len(names) <= COLUMNS else ""
    keys = []
    for part, (middle, reach, what) in middles.items():
        # Only colours that an accuracy can have: none lies below 0 or above 1.
        first = max(0, int(np.ceil(STEPS * (1 - middle / reach) - 0.5)))
        last = min(2 * STEPS, int(np.floor(STEPS * (1 + (1 - middle) / reach) + 0.5)))
        keys.append(
            f"<li><b>{text(part)}</b>: {points(max(0.0, middle - reach))}{scale_bar(first, last)}"
            f"{points(min(1.0, middle + reach))}, grey at {what}, {points(middle)} %</li>"
        )
    return (
        "<h2>Accuracy in every group</h2>"
        f'<p class="lead">{_what_it_is(grid)} Blue is above the middle of the scale, orange below it. '
        "<i>Italic</i>: the 95 % interval holds chance, so that the rows are too few to tell the model from it. "
        "Small numbers: rows of each part.</p>"
        f'<ul class="key soft">{"".join(keys)}</ul>{_model_key(names)}'
        f'<div class="card map{fits}" tabindex="0" role="region" aria-label="Heat map of accuracy"><table>'
        f"<thead>{_map_head(grid, names)}</thead>"
        f"<tbody>{''.join(_map_row(grid, names, path, middles) for path in grid.paths)}</tbody></table></div>"
        f"{_in_full(grid, names)}"
    )


def bars(grid: Grid, names: Sequence[str]) -> str:
    """Accuracy of wider groups, with intervals, a panel for each part; "" where there is but one group."""
    depth = min(2, max(map(len, grid.paths)))
    groups = grid.groups(depth)
    panels = "".join(_panel(grid, part, groups) for part in grid.parts)
    chance = "The dashed line is chance. " if any(np.isfinite(_chance(grid, part, ())) for part in grid.parts) else ""
    body = (
        f'<p class="lead">Bars are accuracies in per cent, lines through their ends 95 % intervals: a bootstrap over '
        f"prompts where rows share one, Wilson's otherwise. {chance}Where two intervals overlap, the models may still "
        "differ: the paired differences tell more, since all answer the same rows.</p>"
        f'{_model_key(names)}<div class="plots">{panels}</div>'
    )
    if len(groups) > OPEN:
        body = f'<details class="card"><summary>{len(groups)} groups</summary>{body}</details>'
    return f"<h2>Groups with intervals</h2>{body}"


def _what_it_is(grid: Grid) -> str:
    depth = max(map(len, grid.paths))
    leaves = len(grid.groups(depth))
    if depth == 0:
        return "The share of rows that each model answers right, in per cent."
    return f"The share of rows that each model answers right, in per cent: {leaves} groups at the finest level."


def _middle(grid: Grid, part: str) -> tuple[float, float, str]:
    """Middle of the part's colours, how far they reach to each side, and what the middle is."""
    values = [cell.accuracy for own in grid.cells for (name, _), cell in own.items() if name == part]
    known = [value for value in values if np.isfinite(value)]
    middle, what = _chance(grid, part, ()), "chance"
    if not np.isfinite(middle):
        whole = [own[part, ()].accuracy for own in grid.cells if (part, ()) in own]
        middle, what = float(np.mean(whole or known or [0.5])), "the mean of all rows"
    reach = max([abs(value - middle) for value in known], default=0.0)
    return middle, min(max(np.ceil(20 * reach) / 20, 0.1), max(middle, 1 - middle)), what


def _chance(grid: Grid, part: str, path: Path_) -> float:
    """Chance in a cell: the first model's that has one (a judge's and a reward model's may differ)."""
    found = [rule.chance[part, path] for rule in grid.rules if (part, path) in rule.chance]
    return next((value for value in found if np.isfinite(value)), float("nan"))


def _model_key(names: Sequence[str]) -> str:
    return f'<ul class="key">{"".join(f"<li>{chip(i)} {text(name)}</li>" for i, name in enumerate(names))}</ul>'


def _map_head(grid: Grid, names: Sequence[str]) -> str:
    one = len(names) == 1
    wide = "" if one else f' colspan="{len(names)}"'
    first = "" if one else ' rowspan="2"'
    parts = "".join(f'<th scope="col"{wide} class="first">{text(part)}</th>' for part in grid.parts)
    head = f'<tr><th scope="col"{first}>Group</th>{parts}</tr>'
    if one:
        return head
    cells = [
        f'<th scope="col" class="{"first" if not i else ""}" title="{text(name)}">{chip(i)}</th>'
        for _ in grid.parts
        for i, name in enumerate(names)
    ]
    return f"{head}<tr>{''.join(cells)}</tr>"


def _map_row(grid: Grid, names: Sequence[str], path: Path_, middles: dict[str, tuple[float, float, str]]) -> str:
    cells, counts = [], []
    for part in grid.parts:
        own = [cells_of.get((part, path)) for cells_of in grid.cells]
        counts.append(next((f"{cell.rows:,}" for cell in own if cell), "–"))
        for i, cell in enumerate(own):
            edge = " first" if not i else ""
            if cell is None:
                cells.append(f'<td class="none{edge}" title="no rows">–</td>')
                continue
            middle, reach, _ = middles[part]
            low, high = cell.low, cell.high
            chance = grid.rules[i].chance[part, path]
            sure = " unsure" if low <= chance <= high else ""
            colour = step(cell.accuracy, middle, reach)
            cells.append(
                f'<td class="{colour}{sure}{edge}" title="{text(_cell_words(names[i], part, path, cell, chance))}">'
                f"{points(cell.accuracy)}</td>"
            )
    name = text(path[-1]) if path else "All rows"
    depth = min(len(path), 3)
    leaf = " leaf" if depth > 1 and all(other[: len(path)] != path or other == path for other in grid.paths) else ""
    return (
        f'<tr class="d{depth}{leaf}"><th scope="row" style="--in:{max(0, len(path) - 1)}">{name} '
        f"<small>{' · '.join(counts)}</small></th>{''.join(cells)}</tr>"
    )


def _cell_words(name: str, part: str, path: Path_, cell: Cell, chance: float) -> str:
    words = f"{name}, {part}, {' / '.join(path) or 'all rows'}: {cell.correct:,} of {cell.rows:,} right, "
    words += f"{points(cell.accuracy)} % {span(cell)}".rstrip()
    return words + (f"; chance {points(chance)} %" if np.isfinite(chance) else "")


def _in_full(grid: Grid, names: Sequence[str]) -> str:
    """Every cell with its interval and rows, for those who cannot hover."""
    head = "".join(
        f'<th scope="col">{text(part)}{" " + chip(i) if len(names) > 1 else ""}</th>'
        for part in grid.parts
        for i in range(len(names))
    )
    lines = []
    for path in grid.paths:
        cells = []
        for part in grid.parts:
            for own in grid.cells:
                cell = own.get((part, path))
                cells.append(
                    f"<td>{points(cell.accuracy)}<small>{span(cell)} {cell.correct:,} of {cell.rows:,}</small></td>"
                    if cell
                    else "<td>–</td>"
                )
        lines.append(f"<tr><td>{text(' / '.join(path)) or 'All rows'}</td>{''.join(cells)}</tr>")
    return (
        '<details class="card"><summary>Every figure with its 95 % interval and its counts</summary>'
        f'<div class="scroll"><table><thead><tr><th scope="col">Group</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _panel(grid: Grid, part: str, groups: Sequence[Path_]) -> str:
    lines, above = [], None
    for path in groups:
        if not any((part, path) in own for own in grid.cells):
            continue
        if path[:-1] and path[:-1] != above:
            lines.append(f'<p class="goal">{text(" / ".join(path[:-1]))}</p>')
        above = path[:-1]
        lines.append(_group(grid, part, path))
    ticks = "<div><span>0</span><span>50</span><span>100 %</span></div>"
    axis = f'<div class="group axis"><span></span>{ticks}<span></span></div>'
    return f'<div class="card panel"><h3>{text(part)}</h3>{axis}{"".join(lines)}</div>'


def _group(grid: Grid, part: str, path: Path_) -> str:
    """A group's bars, a model each, and their numbers beside them."""
    marks, labels = [], []
    for i, own in enumerate(grid.cells):
        cell = own.get((part, path))
        share = cell.accuracy if cell else float("nan")
        low, high = (cell.low, cell.high) if cell else (float("nan"), float("nan"))
        y = ROW * i
        if np.isfinite(share):
            marks.append(f'<rect class="{tone(i)}" x="0" y="{y + 2}" width="{100 * share:.2f}%" height="{ROW - 4}"/>')
        if np.isfinite(low + high):
            ends = f'y1="{y + ROW / 2}" y2="{y + ROW / 2}"'
            marks.append(f'<line class="ci" x1="{100 * low:.2f}%" x2="{100 * high:.2f}%" {ends}/>')
            marks += [
                f'<line class="ci" x1="{100 * end:.2f}%" x2="{100 * end:.2f}%" y1="{y + 5}" y2="{y + ROW - 5}"/>'
                for end in (low, high)
            ]
        key = f"{letter(i)} " if len(grid.cells) > 1 else ""
        labels.append(f"<li>{key}<b>{points(share)}</b> <small>{span(cell) if cell else 'no rows'}</small></li>")
    height = ROW * len(grid.cells)
    lines = [(value, "edge") for value in (0.0, 0.5, 1.0)] + [(_chance(grid, part, path), "mid")]
    rules = "".join(
        f'<line class="{kind}" x1="{100 * value:.2f}%" x2="{100 * value:.2f}%" y1="-3" y2="{height + 3}"/>'
        for value, kind in lines
        if np.isfinite(value)
    )
    return (
        f'<div class="group"><span>{text(path[-1]) if path else "All rows"}</span>'
        f'<svg class="bars" height="{height}" aria-hidden="true">{rules}{"".join(marks)}</svg>'
        f"<ol>{''.join(labels)}</ol></div>"
    )
