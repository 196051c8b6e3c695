"""Cells of several results of one suite: their order, and what chance and length alone give in each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rmfast.evaluation.diagnostics.headline import cell_of
from rmfast.evaluation.suites.base import Cell, Path_
from rmfast.evaluation.suites.result import ItemResult, SuiteResult
from rmfast.report.suite.look import STEPS

Place = tuple[str, Path_]  # part and path


@dataclass(frozen=True)
class Guesses:
    """Accuracies, by place, of answering by chance and of taking the longer response; nan where nothing tells."""

    chance: Mapping[Place, float]
    longer: Mapping[Place, float]


@dataclass(frozen=True)
class Scale:
    """Middle of a part's colours, how far they reach to each side, and what the middle is."""

    middle: float
    reach: float
    what: str

    @property
    def low(self) -> float:
        return max(0.0, self.middle - self.reach)

    @property
    def high(self) -> float:
        return min(1.0, self.middle + self.reach)

    def steps(self) -> range:
        """The colours that an accuracy can have: none is below 0 or above 1."""
        first = math.ceil(STEPS * (1 - self.middle / self.reach) - 0.5)
        last = math.floor(STEPS * (1 + (1 - self.middle) / self.reach) + 0.5)
        return range(max(0, first), min(2 * STEPS, last) + 1)


@dataclass(frozen=True)
class Grid:
    """The cells of M results: one mapping and one set of guesses for each result, in the results' order."""

    cells: tuple[Mapping[Place, Cell], ...]
    guesses: tuple[Guesses, ...]

    @classmethod
    def of(cls, results: Sequence[SuiteResult]) -> "Grid":
        return cls(
            tuple({(c.part, c.path): c for c in result.cells} for result in results),
            tuple(_guesses(result) for result in results),
        )

    @cached_property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(part for cells in self.cells for part, _ in cells))

    @property
    def depth(self) -> int:
        """Of the finest groups; 0 where there is only the whole."""
        return max(map(len, self.paths))

    @property
    def any_chance(self) -> bool:
        """Whether chance is known in some part as a whole."""
        return any(math.isfinite(self.chance(part, ())) for part in self.parts)

    def has(self, part: str, path: Path_) -> bool:
        """Whether some model has the cell."""
        return any((part, path) in cells for cells in self.cells)

    def counts(self, path: Path_) -> list[str]:
        """Rows of the group in each part, as the first model that has it counts them."""
        found = [[cells[part, path].rows for cells in self.cells if (part, path) in cells] for part in self.parts]
        return [f"{rows[0]:,}" if rows else "–" for rows in found]

    def kind(self, path: Path_) -> str:
        """Classes of the group's line: its depth, and whether it is a leaf below the first level."""
        leaf = len(path) > 1 and not any(other[: len(path)] == path != other for other in self.paths)
        return f"d{min(len(path), 3)}{' leaf' if leaf else ''}"

    def chance(self, part: str, path: Path_) -> float:
        """Chance in a cell: the first model's that has one (a judge's and a reward model's may differ)."""
        found = (guesses.chance.get((part, path), math.nan) for guesses in self.guesses)
        return next((value for value in found if math.isfinite(value)), math.nan)

    def scale(self, part: str) -> "Scale":
        """The part's colours: from chance, or else the mean of all rows, as far as its accuracies reach."""
        known = [
            c.accuracy for cells in self.cells for c in cells.values() if c.part == part and c.accuracy == c.accuracy
        ]
        middle, what = self.chance(part, ()), "chance"
        if not math.isfinite(middle):
            whole = [cells[part, ()].accuracy for cells in self.cells if (part, ()) in cells]
            middle, what = float(np.mean(whole or known or [0.5])), "the mean of all rows"
        reach = max([abs(value - middle) for value in known], default=0.0)
        return Scale(middle, min(max(math.ceil(20 * reach) / 20, 0.1), max(middle, 1 - middle)), what)

    @cached_property
    def paths(self) -> list[Path_]:
        """Every group before those inside it; siblings as the files have them, but numbered ones by their number."""
        place: dict[tuple[Path_, str], int] = {}
        for cells in self.cells:
            for _, path in cells:
                for depth, name in enumerate(path):
                    place.setdefault((path[:depth], _kind(name)), len(place))
        known = {path for cells in self.cells for _, path in cells}

        def key(path: Path_) -> list[tuple[int, list[int], str]]:
            return [
                (place[path[:depth], _kind(name)], list(map(int, re.findall(r"[0-9]+", name))), name)
                for depth, name in enumerate(path)
            ]

        return sorted(known, key=key)

    def groups(self, depth: int) -> list[Path_]:
        """Paths of that depth, and shorter ones without groups in them; the whole where there is nothing else."""
        inside = {path[:-1] for path in self.paths}
        found = [p for p in self.paths if p and (len(p) == depth or (len(p) < depth and p not in inside))]
        return found or [path for path in self.paths if not path]


def headline_guesses(result: SuiteResult, guesses: Guesses) -> dict[str, tuple[Cell | None, float, float]]:
    """Of each headline figure the cell that it is, where it is one, and what chance and length alone give.

    A figure that is the plain mean of all others (RMB's overall score) has the mean of their guesses. Where chance is
    the same in every cell, it is so in every mean of them.
    """
    found: dict[str, tuple[Cell | None, float, float]] = {}
    chances = {round(value, 9) for value in guesses.chance.values()}
    everywhere = chances.pop() if len(chances) == 1 else math.nan
    for name in result.headline:
        cell = cell_of(name, result.headline[name], result.cells)
        place = (cell.part, cell.path) if cell else None
        pair = (guesses.chance[place], guesses.longer[place]) if place else (everywhere, math.nan)
        found[name] = (cell, *pair)
    for name, (cell, chance, longer) in found.items():
        others = [other for other in found if other != name]
        values = [result.headline[other] for other in others]
        if cell is None and len(others) > 1 and math.isclose(np.mean(values), result.headline[name]):
            means = [float(np.mean([found[other][i] for other in others])) for i in (1, 2)]
            chance, longer = (
                told if math.isfinite(told) else mean for told, mean in zip((chance, longer), means, strict=True)
            )
            found[name] = (None, chance, longer)
    return found


def _guesses(result: SuiteResult) -> Guesses:
    """Chance and length in every cell whose rows are the result's items, or their edges."""
    items: dict[Place, list[int]] = {}
    by_path: dict[Path_, int] = {}
    for index, item in enumerate(result.items):
        for depth in range(len(item.path) + 1):
            path = item.path[:depth]
            items.setdefault((item.part, path), []).append(index)
            by_path[path] = by_path.get(path, 0) + len(item.edges)
    judged = result.kind == "judge"
    chance = [_chance(item.edges, judged) for item in result.items]
    longer = [_longer(item) for item in result.items]
    rows: dict[Path_, int] = {}
    for cell in result.cells:
        path = cell.path
        rows[path] = rows.get(path, 0) + cell.rows
    chances, longers = {}, {}
    for cell in result.cells:
        place = (cell.part, cell.path)
        inside = items.get(place, [])
        if len(inside) == cell.rows and sum(result.items[i].won for i in inside) == cell.correct:
            chances[place] = float(np.mean([chance[i] for i in inside])) if inside else math.nan
            longers[place] = float(np.mean([longer[i] for i in inside])) if inside else math.nan
        else:  # every edge is a verdict, in a part that the items do not tell
            chances[place] = 0.5 if rows[place[1]] == by_path.get(place[1]) else math.nan
            longers[place] = math.nan
    return Guesses(chances, longers)


def _chance(edges: Sequence[Sequence[int]], judged: bool) -> float:
    """P(every edge is won): by coins of a judge, a toss an edge; by random rewards that never tie, one a response.

    With b better responses that must all be above w worse ones that is b! w! / (b + w)!, 1 / (w + 1) for best-of-n;
    nan for other shapes.
    """
    better, worse = {b for b, _ in edges}, {w for _, w in edges}
    if judged:
        return 0.5 ** len(edges)
    if better & worse or len({(b, w) for b, w in edges}) != len(better) * len(worse):
        return math.nan
    return 1 / math.comb(len(better) + len(worse), len(better))


def _longer(item: ItemResult) -> float:
    """Whether the better response is the longer one on every edge; equal lengths lose."""
    lengths = item.lengths
    if not all(map(math.isfinite, lengths)):
        return math.nan
    return float(all(lengths[b] > lengths[w] for b, w in item.edges))


def _kind(name: str) -> str:
    return re.sub(r"[0-9]+", "#", name)
