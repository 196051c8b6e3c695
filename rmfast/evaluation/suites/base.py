"""Suites: what a benchmark asks, what a model answers, and what counts as right. No models here.

A suite reads its files into items. An item is a prompt with responses and edges better > worse; a reward model or a
judge says by how much each edge is won. Verdicts, one or more an item, are averaged into cells: one for each part of
the benchmark (pairwise, best-of-n, ...) and each group of its rows, from the whole down to the scenario.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmfast.data.columns import Columns
from rmfast.data.example import Example
from rmfast.evaluation.metrics import accuracy_interval
from rmfast.jsonio import Real

Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """A row of a suite that can be judged."""

    uid: str
    """The row's name in the benchmark."""
    label: str
    """Its place: file:row."""
    part: str
    """What kind of task it is; accuracies of different parts are never averaged row by row."""
    path: Path_
    """Groups that it belongs to, from the widest to the narrowest."""
    example: Example
    writers: tuple[str, ...] = ()
    """Who wrote each response, where the benchmark says so."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the suite's verdicts need beside."""


@dataclass(frozen=True)
class Unscored:
    """A row that cannot be judged, and why."""

    label: str
    part: str
    path: Path_
    cause: str
    detail: str


@dataclass(frozen=True)
class Rows:
    """All that a suite's files hold; `notes` are lines on what is missing or odd there."""

    items: tuple[Item, ...]
    unscored: tuple[Unscored, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a model says of an item.

    Attributes:
        gaps: [E] by how much `better` is preferred: a difference of rewards, or a judge's share of votes for it less
            those against. Above 0 the edge is won; a tie (0) and what could not be judged (nan) are lost.
        rewards: [N] of the responses; None from judges and from majority votes, which give none.
    """

    item: Item
    gaps: NDArray[np.float64]
    rewards: NDArray[np.float64] | None = None

    @property
    def won(self) -> bool:
        """Whether every edge is won."""
        return bool((self.gaps > 0).all())


@dataclass(frozen=True)
class Verdict:
    """One thing that was right or wrong: counted in `part`, in the group `path` and all wider ones."""

    part: str
    path: Path_
    won: bool


@dataclass(frozen=True)
class Cell:
    """Accuracy of one group of rows in one part, with its 95 % interval (a bootstrap over prompts that share rows).

    `path` is empty for a part as a whole. `not_scored`: rows of the group that are in none of the figures.
    """

    part: str
    path: Path_
    rows: int
    correct: int
    accuracy: Real
    low: Real
    high: Real
    not_scored: int = 0


def one_verdict(result: Result) -> Iterator[Verdict]:
    """Right where every edge is won: a pair, or best-of-n's best above every loser."""
    yield Verdict(result.item.part, result.item.path, result.won)


def accuracies(cells: Sequence[Cell], results: Sequence[Result]) -> dict[str, float]:
    """Accuracy of each part as a whole."""
    return {cell.part: cell.accuracy for cell in cells if not cell.path}


@dataclass(frozen=True)
class Suite:
    """A benchmark.

    Attributes:
        about: a line for people.
        read: its items from a file or folder; raises UserError where nothing there can be used.
        takes_columns: whether `read` takes `Columns` too: data of any format, where a benchmark has one format.
        verdicts: of a result.
        headline: the figures that the benchmark is quoted by, the most important first.
    """

    name: str
    about: str
    read: Callable[..., Rows]
    verdicts: Callable[[Result], Iterable[Verdict]] = one_verdict
    headline: Callable[[Sequence[Cell], Sequence[Result]], dict[str, float]] = accuracies
    takes_columns: bool = False

    def rows(self, source: str, columns: Columns) -> Rows:
        """`read`, with `columns` where it takes them."""
        return self.read(source, columns) if self.takes_columns else self.read(source)


def cells(suite: Suite, results: Sequence[Result]) -> list[Cell]:
    """Every part as a whole and every group in it, in the order in which they first come."""
    prompts: dict[str, int] = {}
    won: dict[tuple[str, Path_], tuple[list[bool], list[int]]] = {}
    for result in results:
        prompt = prompts.setdefault(group_key(result.item.example), len(prompts))
        for verdict in suite.verdicts(result):
            for depth in range(len(verdict.path) + 1):
                right, groups = won.setdefault((verdict.part, verdict.path[:depth]), ([], []))
                right.append(verdict.won)
                groups.append(prompt)
    out = []
    for (part, path), (right, groups) in won.items():
        flags = np.array(right)
        low, high = accuracy_interval(flags, np.array(groups))
        out.append(Cell(part, path, flags.size, int(flags.sum()), float(flags.mean()), low, high))
    return out


def group_key(example: Example) -> str:
    """Equal for examples whose responses can share one prompt group.

    A prompt inside the responses is the turns that they begin with; texts and ids do not show where theirs ends, so
    that only equal rows share a key.
    """
    kind = "text" if isinstance(example.responses[0], str) else "messages"
    prompt: Any = example.prompt
    if prompt is None:
        turns = zip(*map(example.conversation, example.responses), strict=False) if example.is_messages else ()
        shared = [turn[0] for turn in takewhile(lambda turn: all(same == turn[0] for same in turn), turns)]
        prompt = "inside", shared or example.responses
    return repr((prompt, kind, example.tools, example.template_kwargs))
