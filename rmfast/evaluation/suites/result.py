"""An evaluation as one JSON file: headline figures, cells, metrics of all edges, the worst rows, and every row.

Two results of one suite on the same data can be laid side by side: their rows are in the same order.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field

from rmfast.data.example import Edge, Example
from rmfast.data.notes import note_lines
from rmfast.errors import UserError, shown
from rmfast.evaluation.combine import OF_REWARDS
from rmfast.evaluation.metrics import pairwise_metrics
from rmfast.evaluation.suites.answers import Answers
from rmfast.evaluation.suites.base import Cell, Item, Path_, Result, Rows, Suite, Unscored, cells, group_key
from rmfast.jsonio import Real, from_json, json_line, spliced, to_json
from rmfast.paths import whole_text

FORMAT = 1
WORST = 20  # rows that are kept with their texts
TEXT = 1500  # characters that are kept of a text

Metrics = dict[str, float | int | str]
WriterNames = Annotated[list[str], Field(alias="sources")]

METRICS = pairwise_metrics([0.0, 0.0], [0], [1], lengths=[1, 1]).keys()
"""Names of the metrics of all edges: keys of the file."""
COUNTS = ("responses", "nonfinite", "edges", "ties")
"""Those that are whole numbers."""


@dataclass(frozen=True)
class ItemResult:
    """What a model says of an item, without its texts: gaps [E], rewards [N] or None, lengths [N], edges (better,
    worse) [E], writers [N] or none; `prompt` is a number that rows of one prompt share."""

    uid: str
    label: str
    part: str
    path: Path_
    won: bool
    gaps: list[Real]
    rewards: list[Real] | None
    lengths: list[Real]
    edges: list[tuple[int, int]]
    writers: WriterNames
    prompt: int

    def __post_init__(self) -> None:
        count = len(self.lengths)
        inside = all(0 <= place < count for edge in self.edges for place in edge)
        alike = len(self.gaps) == len(self.edges) and len(self.rewards or self.lengths) == count
        if not inside or not alike or len(self.writers) not in (0, count):
            raise ValueError(f"{self.uid}: its edges, gaps, rewards, lengths and writers do not fit together")

    def result(self) -> Result:
        """The row as the suite saw it, without texts; rows of one prompt share theirs.

        What a suite keeps in `extra` is not in the file, but for `right`, the number of right answers.
        """
        edges = tuple(Edge(better, worse) for better, worse in self.edges)
        example = Example(str(self.prompt), tuple(map(str, range(len(self.lengths)))), edges)
        extra = {"right": len({edge.better for edge in edges})}
        item = Item(self.uid, self.label, self.part, self.path, example, tuple(self.writers), extra)
        return Result(item, np.array(self.gaps), None if self.rewards is None else np.array(self.rewards))


@dataclass(frozen=True)
class WorstRow:
    """A row that is lost by most, with its texts (cut) and the writers of the better and the worse response."""

    uid: str
    label: str
    part: str
    path: Path_
    gap: Real
    prompt: str
    better: str
    worse: str
    writers: WriterNames


@dataclass(frozen=True)
class SuiteResult:
    """What one model says of a suite.

    Attributes:
        data: where the suite's rows come from.
        name, kind: who answered; kind is reward model, ensemble or judge. about: what tells it from others.
        headline: shares by name. metrics: `pairwise_metrics` of all edges.
        rows: of the suite, scored or not. template_date, notes, figures: see `Answers`.
        votes: of each item [members, edges], where there are several members or samples; a judge's are [edges, asked].
        left_out: rows that this model has scored and that are left out for another's sake (not in the file).
    """

    suite: str
    data: str
    name: str
    kind: str
    about: dict[str, Any]
    headline: dict[str, Real]
    cells: list[Cell]
    metrics: Metrics
    length_unit: str
    rows: int
    rows_not_scored: int
    not_scored_by_cause: dict[str, int]
    not_scored: list[Unscored]
    template_date: str | None
    notes: list[str]
    figures: dict[str, Any]
    worst: list[WorstRow]
    items: list[ItemResult]
    votes: list[list[list[Real]]] | None
    left_out: tuple[Unscored, ...] = ()

    @property
    def members(self) -> list[float]:
        """Accuracy of each member of an ensemble alone; empty of one model."""
        return self.about.get("members", [])

    def to_json(self) -> dict[str, Any]:
        """The file's content: `about` and `metrics` key by key."""
        whole = spliced(to_json(self), "about", "metrics")
        del whole["left_out"]
        return {"format": FORMAT} | whole

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SuiteResult":
        """The result of a file's content.

        Raises:
            ValueError: a key is missing or of another type.
        """
        known = {field.name for field in fields(cls)} | METRICS | {"format"}
        about = {key: value for key, value in content.items() if key not in known}
        if lacking := [key for key in ("edges", "ties", "nonfinite") if key not in content]:
            raise ValueError(f"{lacking[0]}: it is missing")
        metrics = {key: _metric(key, content[key]) for key in METRICS if key in content}
        result = from_json(cls, {**content, "about": about, "metrics": metrics})
        if result.votes is not None:
            _check_votes(result.items, result.votes, judge=result.kind == "judge")
        return result


def _check_votes(items: Sequence[ItemResult], votes: Sequence[Sequence[Sequence[float]]], judge: bool) -> None:
    """Refuse votes that are not a table for each item. Raises ValueError."""
    if len(votes) != len(items):
        raise ValueError(f"votes: {len(votes)} for {len(items)} items")
    for item, of_item in zip(items, votes, strict=True):
        edges, widths = len(item.edges), {len(row) for row in of_item}
        if not (len(of_item) == edges and len(widths) <= 1 if judge else widths <= {edges}):
            wanted = f"[{edges}, asked]" if judge else f"[members, {edges}]"
            raise ValueError(f"votes: those of {item.uid} are not {wanted}")


def _metric(key: str, value: Any) -> float | int | str:
    """A metric of a file, null as nan. Raises ValueError: it has another type."""
    fits = isinstance(value, str) if key == "baseline" else isinstance(value, int | float | None)
    if not fits or isinstance(value, bool) or (key in COUNTS and not (isinstance(value, int) and value >= 0)):
        raise ValueError(f"{key}: it is {shown(value)}")
    return np.nan if value is None else value


def suite_result(suite: Suite, rows: Rows, answers: Answers, *, about: Mapping[str, Any], data: str) -> SuiteResult:
    """The result of a suite's rows.

    Args:
        about: who answered: `name`, `kind` (reward model, ensemble, judge), and what tells it from others.
        data: where the suite's rows come from.
    """
    results = answers.results
    unscored = [*rows.unscored, *answers.unscored]
    found = cells(suite, results)
    parts = {cell.part for cell in found}
    prompts: dict[str, int] = {}
    numbers = [prompts.setdefault(group_key(r.item.example), len(prompts)) for r in results]
    return SuiteResult(
        suite=suite.name,
        data=data,
        name=about["name"],
        kind=about["kind"],
        about={key: value for key, value in about.items() if key not in ("name", "kind")},
        headline=suite.headline(found, results),
        cells=[replace(cell, not_scored=_not_scored_in(cell, unscored, parts)) for cell in found],
        metrics=edge_metrics(results, answers.lengths, numbers),
        length_unit=answers.unit,
        rows=len(rows.items) + len(rows.unscored),
        rows_not_scored=len(unscored),
        not_scored_by_cause=dict(Counter(row.cause for row in unscored).most_common()),
        not_scored=unscored,
        template_date=answers.template_date,
        notes=[*rows.notes, *note_lines(answers.notes)],
        figures=answers.figures,
        worst=[_worst(results[i]) for i in _worst_order(results)],
        items=[_item(*row) for row in zip(results, answers.lengths, numbers, strict=True)],
        votes=None if answers.votes is None else [votes.tolist() for votes in answers.votes],
    )


def _item(result: Result, lengths: np.ndarray, prompt: int) -> ItemResult:
    item = result.item
    return ItemResult(
        *(item.uid, item.label, item.part, item.path),
        won=result.won,
        gaps=result.gaps.tolist(),
        rewards=None if result.rewards is None else result.rewards.tolist(),
        lengths=lengths.tolist(),
        edges=[(edge.better, edge.worse) for edge in item.example.edges],
        writers=list(item.writers),
        prompt=prompt,
    )


def _not_scored_in(cell: Cell, unscored: Sequence[Unscored], parts: set[str]) -> int:
    """Rows of a cell that could not be scored; one whose verdicts would be in several parts counts in each."""
    of_part = [row for row in unscored if row.part == cell.part or row.part not in parts]
    return sum(row.path[: len(cell.path)] == cell.path for row in of_part)


def edge_metrics(results: Sequence[Result], lengths: Sequence[np.ndarray], prompts: Sequence[int]) -> Metrics:
    """`pairwise_metrics` of all edges of all items; without rewards those that need none.

    Args:
        lengths: of each item's responses. prompts: of each item; items of one prompt are drawn together.
    """
    scores: list[np.ndarray] = []
    better, worse, length = [], [], []
    offset = 0
    for result, of_item in zip(results, lengths, strict=True):
        edges = result.item.example.edges
        ends = np.array([(e.better, e.worse) for e in edges], dtype=np.intp).reshape(-1, 2)
        if result.rewards is not None:
            scores.append(result.rewards)
            length.append(of_item)
        else:  # each edge as two responses, the better one with the gap for its reward
            scores.append(np.stack((result.gaps, 0 * result.gaps), 1).ravel())
            length.append(of_item[ends.ravel()])
            ends = np.arange(ends.size).reshape(-1, 2)
        better.append(ends[:, 0] + offset)
        worse.append(ends[:, 1] + offset)
        offset += len(scores[-1])
    all_edges = [e for r in results for e in r.item.example.edges]
    metrics = pairwise_metrics(
        np.concatenate(scores),
        np.concatenate(better),
        np.concatenate(worse),
        weight=np.concatenate([_weights(r.item.example) for r in results]),
        margin=np.array([e.margin for e in all_edges]),
        target=np.array([e.target for e in all_edges]),
        lengths=np.concatenate(length),
        groups=np.repeat(prompts, [len(r.item.example.edges) for r in results]),
    )
    if all(r.rewards is not None for r in results):
        return metrics
    broken = sum(int((~np.isfinite(r.gaps)).sum()) for r in results)
    kept = {key: value for key, value in metrics.items() if key not in OF_REWARDS | {"responses"}}
    return kept | {"nonfinite": broken}


def _weights(example: Example) -> np.ndarray:
    """Weight of each edge in the loss, as in training: an edge between equal responses weighs nothing, and the others
    share the group's one weight."""
    differ = np.array([example.responses[e.better] != example.responses[e.worse] for e in example.edges])
    weights = np.array([e.weight for e in example.edges]) * differ
    return weights if example.per_edge_weight else weights / max(1, differ.sum())


def _worst_order(results: Sequence[Result]) -> np.ndarray:
    """The items with an edge that was lost by most: what was not judged first, then the most negative gap."""
    gaps = np.array([np.where(np.isfinite(r.gaps), r.gaps, -np.inf).min() for r in results])
    order = np.argsort(gaps, kind="stable")[:WORST]
    return order[gaps[order] <= 0]


def _worst(result: Result) -> WorstRow:
    item, prompt = result.item, result.item.example.prompt
    edge = int(np.argmin(np.where(np.isfinite(result.gaps), result.gaps, -np.inf)))
    ends = item.example.edges[edge]
    better, worse = (_cut(text(item.example.responses[i])) for i in (ends.better, ends.worse))
    return WorstRow(
        *(item.uid, item.label, item.part, item.path),
        gap=float(result.gaps[edge]),
        prompt=_cut("" if prompt is None else prompt if isinstance(prompt, str) else _turns(cast(list[Any], prompt))),
        better=better,
        worse=worse,
        writers=[item.writers[i] for i in (ends.better, ends.worse)] if item.writers else [],
    )


def text(response: Any) -> str:
    """A response as people read it."""
    if isinstance(response, str):
        return response
    return _turns(response) if response and isinstance(response[0], dict) else f"{len(response)} token ids"


def _turns(messages: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]} [... {len(text) - TEXT:,} characters more]"


def result_json(content: Mapping[str, Any]) -> str:
    """The text of a file of results or diagnostics: a key a line, and an item a line."""
    lines = []
    for key, value in content.items():
        if key in ("items", "cells", "worst", "votes") and value:
            inner = ",\n".join(f"  {json_line(row)}" for row in value)
            lines.append(f' "{key}": [\n{inner}\n ]')
        else:
            lines.append(f' "{key}": {json_line({"": value})[5:-1]}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_result(path: str | Path) -> SuiteResult:
    """A file that `rmfast eval --out` wrote.

    Raises:
        UserError: the file cannot be read, or is not such a file.
    """
    try:
        content = json.loads(whole_text(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that rmfast eval --out wrote") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error}); give a file that rmfast eval --out wrote") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "items" not in content:
        raise UserError(f"{path}: no result of rmfast eval (format {FORMAT}); evaluate again with --out")
    try:
        return SuiteResult.from_json(content)
    except ValueError as error:
        raise UserError(f"{path}: a damaged result of rmfast eval ({error}); evaluate again with --out") from None
