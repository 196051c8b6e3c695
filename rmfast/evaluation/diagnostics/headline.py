"""A suite's figures, in every resample: accuracies of all cells from sums, headline figures from the cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.resample import Figure, Indices, figure, resampled, tallies
from rmfast.evaluation.metrics import SEED, Floats
from rmfast.evaluation.suites.base import Cell, Path_, Result, Suite, one_verdict
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import SuiteResult

Key = tuple[str, Path_]
FEW = 200  # draws of a headline that needs every row, and not cells alone


@dataclass(frozen=True)
class Resamples:
    """Accuracy of cells and headline figures, as they are and in D draws that are the same for every result.

    Attributes:
        cells: by (part, path), in the suite's order; drawn: [D, C] of them.
        headline: by name, each with its draws [D].
        cell: the cell of the file that a headline figure is, by the figure's name, where it is one.
        note: a line on what could not be had.
    """

    cells: dict[Key, float]
    drawn: Floats
    headline: dict[str, float]
    headline_drawn: dict[str, Floats]
    cell: dict[str, Cell]
    note: str | None = None

    def figures(self) -> dict[str, Figure]:
        """Of each headline figure; one that is a cell has the cell's interval, so that none has two."""
        return {name: self._figure(name, value) for name, value in self.headline.items()}

    def _figure(self, name: str, value: float) -> Figure:
        cell = self.cell.get(name)
        return figure(value, self.headline_drawn.get(name)) if cell is None else Figure(value, cell.low, cell.high)


def cell_of(name: str, value: float, cells: Sequence[Cell]) -> Cell | None:
    """The cell that a headline figure is: it has the figure's name, and its value; None where no cell has them."""
    for cell in cells:
        path, part = cell.path, cell.part
        names = {path[-1], f"{path[-1]} {part}", " ".join([*path, part])} if path else {part}
        if name in names and math.isclose(cell.accuracy, value, abs_tol=1e-12):
            return cell
    return None


def resample_suite(result: SuiteResult, suite: Suite | None = None) -> Resamples:
    """Bootstrap of a result file's figures.

    A headline made of cells alone is computed from each draw's cells; another (RewardBench 2) from each draw's rows,
    where ids that differ only before their colon (ref:N, tied:N) are drawn together and a row drawn again is another
    row (see `ItemResult.result` on what rows of a file lack).
    """
    rows = [item.result() for item in result.items]
    prompt = np.unique([item.prompt for item in result.items], return_inverse=True)[1].reshape(-1)
    told = result.headline
    cell = {name: cell for name, value in told.items() if (cell := cell_of(name, value, result.cells)) is not None}
    try:
        suite = find_suite(result.suite) if suite is None else suite
    except UserError:
        note = f"{result.suite} is no built-in suite: no intervals of its headline; give --suite FILE.py"
        return _without_headline(rows, prompt, told, cell, note)
    try:
        number, verdicts = verdicts_of(suite, rows)
        cells, drawn = cells_of(number, verdicts), _drawn(number, verdicts, prompt)
        again = suite.headline(cells, rows)
        if not same_figures(again, told):
            raise ValueError("computed again, it is another than in the file")
        alone = _needs_cells_alone(suite, cells, again)
        draws = _by_cells(suite, cells, drawn) if alone else _by_rows(suite, rows, prompt)
    except Exception as error:  # a user's suite may ask of rows what the file does not hold
        note = f"{suite.name}: no intervals of its headline: {type(error).__name__}: {error}"
        return _without_headline(rows, prompt, told, cell, note)
    return Resamples(_values(cells), drawn, told, draws, cell)


def _without_headline(
    rows: Sequence[Result], prompt: Indices, told: dict[str, float], cell: dict[str, Cell], note: str
) -> Resamples:
    """A verdict a row, in the rows' parts and groups."""
    number, verdicts = verdicts_of(None, rows)
    return Resamples(_values(cells_of(number, verdicts)), _drawn(number, verdicts, prompt), told, {}, cell, note)


def verdicts_of(suite: Suite | None, rows: Sequence[Result]) -> tuple[dict[Key, int], Indices]:
    """Cells by number, in the order of `suite.cells`; and (row, cell, won) of every verdict [V, 3]."""
    number: dict[Key, int] = {}
    found: list[tuple[int, int, bool]] = []
    for row, result in enumerate(rows):
        for verdict in (one_verdict if suite is None else suite.verdicts)(result):
            for depth in range(len(verdict.path) + 1):
                place = number.setdefault((verdict.part, verdict.path[:depth]), len(number))
                found.append((row, place, verdict.won))
    return number, np.array(found, dtype=np.intp).reshape(-1, 3)


def cells_of(number: dict[Key, int], verdicts: Indices) -> list[Cell]:
    """Without intervals."""
    _, place, won = verdicts.T
    totals = zip(number, np.bincount(place).tolist(), np.bincount(place, won).tolist(), strict=True)
    return [Cell(*key, n, int(right), right / n, np.nan, np.nan) for key, n, right in totals]


def _drawn(number: dict[Key, int], verdicts: Indices, prompt: Indices) -> Floats:
    """Accuracies of the cells in every draw [D, C]; nan where a draw has no row of the cell."""
    row, place, won = verdicts.T
    right, count = (tallies(prompt[row], place, int(prompt.max()) + 1, len(number), weight) for weight in (won, None))
    sums = resampled(np.hstack((right, count)))
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[:, : len(number)] / sums[:, len(number) :])


def _values(cells: Sequence[Cell]) -> dict[Key, float]:
    return {(cell.part, cell.path): cell.accuracy for cell in cells}


def same_figures(one: dict[str, float], other: dict[str, float]) -> bool:
    a, b = (np.array(list(figures.values()), dtype=np.float64) for figures in (one, other))
    return one.keys() == other.keys() and np.allclose(a, b, rtol=0, atol=1e-9, equal_nan=True)


def _needs_cells_alone(suite: Suite, cells: Sequence[Cell], headline: dict[str, float]) -> bool:
    try:
        return same_figures(suite.headline(cells, []), headline)
    except Exception:  # a headline, a user's too, may want rows and fail in any way without them
        return False


def _by_cells(suite: Suite, cells: Sequence[Cell], drawn: Floats) -> dict[str, Floats]:
    figures = []
    for accuracies in drawn.tolist():
        known = zip(cells, accuracies, strict=True)  # a group that no draw of prompts hit is not there
        some = [Cell(c.part, c.path, c.rows, c.correct, a, np.nan, np.nan) for c, a in known if a == a]
        figures.append(suite.headline(some, []))
    return _columns(figures)


def _by_rows(suite: Suite, rows: Sequence[Result], prompt: Indices) -> dict[str, Floats]:
    members: dict[int, list[Result]] = {}
    for result, cluster in zip(rows, _clusters(rows, prompt), strict=True):
        members.setdefault(cluster, []).append(result)
    every = list(members.values())
    generator = np.random.default_rng(SEED)
    figures = []
    for _ in range(FEW):
        some = []
        for place, times in enumerate(np.bincount(generator.integers(len(every), size=len(every)))):
            for copy in range(times):
                some += every[place] if not copy else [_copy(result, copy) for result in every[place]]
        figures.append(suite.headline(cells_of(*verdicts_of(suite, some)), some))
    return _columns(figures)


def _copy(result: Result, number: int) -> Result:
    return replace(result, item=replace(result.item, uid=f"{result.item.uid}~{number}"))


def _clusters(rows: Sequence[Result], prompt: Indices) -> list[int]:
    """Rows [n] that share a prompt, or an id but for the word before its colon within a part, directly or by others."""
    parent: dict[Any, Any] = {}

    def root(node: Any) -> Any:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for result, number in zip(rows, prompt.tolist(), strict=True):
        uid = result.item.uid
        tail = uid if uid == result.item.label else uid.partition(":")[2] or uid
        parent[root((result.item.part, tail))] = root(number)
    return [root(number) for number in prompt.tolist()]


def _columns(figures: Sequence[dict[str, float]]) -> dict[str, Floats]:
    return {name: np.array([of_draw[name] for of_draw in figures], dtype=np.float64) for name in figures[0]}
