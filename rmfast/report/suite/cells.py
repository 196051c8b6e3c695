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

Place = tuple[str, Path_]  # part and path


@dataclass(frozen=True)
class Rule:
    """Accuracies, by place, of answering by chance and of taking the longer response; nan where nothing tells."""

    chance: Mapping[Place, float]
    longer: Mapping[Place, float]


@dataclass(frozen=True)
class Grid:
    """The cells of M results: one mapping and one rule for each result, in the results' order."""

    cells: tuple[Mapping[Place, Cell], ...]
    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, results: Sequence[SuiteResult]) -> "Grid":
        return cls(
            tuple({(c.part, c.path): c for c in result.cells} for result in results),
            tuple(_rule(result) for result in results),
        )

    @cached_property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(part for own in self.cells for part, _ in own))

    @cached_property
    def paths(self) -> list[Path_]:
        """Every group before those inside it; siblings as the files have them, but numbered ones by their number."""
        place: dict[tuple[Path_, str], int] = {}
        for own in self.cells:
            for _, path in own:
                for depth, name in enumerate(path):
                    place.setdefault((path[:depth], _kind(name)), len(place))
        known = {path for own in self.cells for _, path in own}

        def key(path: Path_) -> list[tuple[int, list[int], str]]:
            return [
                (place[path[:depth], _kind(name)], list(map(int, re.findall(r"[0-9]+", name))), name)
                for depth, name in enumerate(path)
            ]

        return sorted(known, key=key)

    def groups(self, depth: int) -> list[Path_]:
        """Paths of that depth, and shorter ones that nothing lies in; the whole where there is nothing else."""
        inside = {path[:-1] for path in self.paths}
        found = [p for p in self.paths if p and (len(p) == depth or (len(p) < depth and p not in inside))]
        return found or [path for path in self.paths if not path]


def headline_rules(result: SuiteResult, rule: Rule) -> dict[str, tuple[Cell | None, float, float]]:
    """Of each headline figure the cell that it is, where it is one, and what chance and length alone give.

    A figure that is the plain mean of all others (RMB's overall score) has the mean of their rules. Where chance is the
    same in every cell, it is so in every mean of them.
    """
    found: dict[str, tuple[Cell | None, float, float]] = {}
    chances = {round(value, 9) for value in rule.chance.values()}
    everywhere = chances.pop() if len(chances) == 1 else math.nan
    for name in result.headline:
        cell = cell_of(name, result.headline[name], result.cells)
        place = (cell.part, cell.path) if cell else None
        pair = (rule.chance[place], rule.longer[place]) if place else (everywhere, math.nan)
        found[name] = (cell, *pair)
    for name, (cell, chance, longer) in found.items():
        others = [other for other in found if other != name]
        values = [result.headline[other] for other in others]
        if cell is None and len(others) > 1 and math.isclose(np.mean(values), result.headline[name]):
            means = [float(np.mean([found[other][i] for other in others])) for i in (1, 2)]
            chance, longer = (
                own if math.isfinite(own) else mean for own, mean in zip((chance, longer), means, strict=True)
            )
            found[name] = (None, chance, longer)
    return found


def _rule(result: SuiteResult) -> Rule:
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
        own = items.get(place, [])
        if len(own) == cell.rows and sum(result.items[i].won for i in own) == cell.correct:
            chances[place] = float(np.mean([chance[i] for i in own])) if own else math.nan
            longers[place] = float(np.mean([longer[i] for i in own])) if own else math.nan
        else:  # every edge is a verdict of its own, in a part that the items do not tell
            chances[place] = 0.5 if rows[place[1]] == by_path.get(place[1]) else math.nan
            longers[place] = math.nan
    return Rule(chances, longers)


def _chance(edges: Sequence[Sequence[int]], judged: bool) -> float:
    """P(every edge is won): by coins of a judge, a toss an edge; by random rewards that never tie, one a response.

    With b better responses that must all lie above w worse ones that is b! w! / (b + w)!, 1 / (w + 1) for best-of-n;
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
