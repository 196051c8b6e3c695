"""An evaluation as one JSON file: headline figures, cells, diagnostics of all edges, the worst rows, and every row.

Two results of one suite on the same data can be laid side by side: their rows stand in the same order.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.data.example import Example
from rmfast.data.notes import note_lines
from rmfast.errors import UserError
from rmfast.evaluation.combine import OF_REWARDS
from rmfast.evaluation.metrics import pairwise_metrics
from rmfast.evaluation.suites.answers import Answers
from rmfast.evaluation.suites.base import Cell, Result, Rows, Suite, Unscored, cells, prompt_key
from rmfast.jsonio import json_line

FORMAT = 1
WORST = 20  # rows that are kept with their texts
TEXT = 1500  # characters that are kept of a text

Data = dict[str, Any]


def suite_result(suite: Suite, rows: Rows, answers: Answers, *, about: Data, data: str) -> Data:
    """The result as JSON has it.

    Args:
        about: who answered: `name`, `kind` (reward model, ensemble, judge), and what tells it from others.
        data: where the suite's rows come from.

    Returns:
        format, suite, data, `about`; headline {name: share}; `pairwise_metrics` of all edges, each a key; cells
        [{part, path, rows, correct, accuracy, low, high, not_scored}], the empty path for a part as a whole; rows,
        rows_not_scored, not_scored_by_cause, not_scored [{label, part, path, cause, detail}]; template_date, notes and
        figures (see `Answers`); worst [{label, path, gap, prompt, better, worse, ...}]; items [{uid, label, part, path,
        won, gaps, rewards, lengths, edges, sources, prompt}], prompt a number that rows of one prompt share; votes,
        [members, edges] for each item, where there are several members or samples.
    """
    results = answers.results
    unscored = [*rows.unscored, *answers.unscored]
    found = cells(suite, results)
    parts = {cell.part for cell in found}
    prompts: dict[str, int] = {}
    numbers = [prompts.setdefault(prompt_key(r.item.example), len(prompts)) for r in results]
    return {
        "format": FORMAT,
        "suite": suite.name,
        "data": data,
        **about,
        "headline": suite.headline(found, results),
        "cells": [
            vars(cell) | {"path": list(cell.path), "not_scored": _within(cell, unscored, parts)} for cell in found
        ],
        **edge_metrics(results, answers.lengths, numbers),
        "length_unit": answers.unit,
        "rows": len(rows.items) + len(rows.unscored),
        "rows_not_scored": len(unscored),
        "not_scored_by_cause": dict(Counter(row.cause for row in unscored).most_common()),
        "not_scored": [vars(row) | {"path": list(row.path)} for row in unscored],
        "template_date": answers.template_date,
        "notes": [*rows.notes, *note_lines(answers.notes)],
        "figures": answers.figures,
        "worst": [_worst(results[i]) for i in _worst_order(results)],
        "items": [
            {
                "uid": r.item.uid,
                "label": r.item.label,
                "part": r.item.part,
                "path": list(r.item.path),
                "won": r.won,
                "gaps": r.gaps.tolist(),
                "rewards": None if r.rewards is None else r.rewards.tolist(),
                "lengths": length.tolist(),
                "edges": [[edge.better, edge.worse] for edge in r.item.example.edges],
                "sources": list(r.item.sources),
                "prompt": prompt,
            }
            for r, length, prompt in zip(results, answers.lengths, numbers, strict=True)
        ],
        "votes": None if answers.votes is None else [v.tolist() for v in answers.votes],
    }


def _within(cell: Cell, unscored: Sequence[Unscored], parts: set[str]) -> int:
    """Rows of a cell that could not be scored; one whose verdicts would lie in several parts counts in each."""
    mine = [row for row in unscored if row.part == cell.part or row.part not in parts]
    return sum(row.path[: len(cell.path)] == cell.path for row in mine)


def edge_metrics(
    results: Sequence[Result], lengths: Sequence[np.ndarray], prompts: Sequence[int]
) -> dict[str, float | int | str]:
    """`pairwise_metrics` of all edges of all items; without rewards those that need none.

    Args:
        lengths: of each item's responses. prompts: of each item; items of one prompt are drawn together.
    """
    scores: list[np.ndarray] = []
    better, worse, length = [], [], []
    offset = 0
    for r, own in zip(results, lengths, strict=True):
        edges = r.item.example.edges
        ends = np.array([(e.better, e.worse) for e in edges], dtype=np.intp).reshape(-1, 2)
        if r.rewards is not None:
            scores.append(r.rewards)
            length.append(own)
        else:  # each edge as two responses of its own, the better one with the gap for its reward
            scores.append(np.stack((r.gaps, 0 * r.gaps), 1).ravel())
            length.append(own[ends.ravel()])
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
    return {key: value for key, value in metrics.items() if key not in OF_REWARDS | {"responses"}} | {
        "nonfinite": broken
    }


def _weights(example: Example) -> np.ndarray:
    """Weight of each edge in the loss, as in training: an edge between equal responses weighs nothing, and the others
    share the group's one weight."""
    differ = np.array([example.responses[e.better] != example.responses[e.worse] for e in example.edges])
    own = np.array([e.weight for e in example.edges]) * differ
    return own if example.per_edge_weight else own / max(1, differ.sum())


def _worst_order(results: Sequence[Result]) -> np.ndarray:
    """The items with an edge that was lost by most: what was not judged first, then the most negative gap."""
    gaps = np.array([np.where(np.isfinite(r.gaps), r.gaps, -np.inf).min() for r in results])
    order = np.argsort(gaps, kind="stable")[:WORST]
    return order[gaps[order] <= 0]


def _worst(result: Result) -> Data:
    item = result.item
    edge = int(np.argmin(np.where(np.isfinite(result.gaps), result.gaps, -np.inf)))
    ends = item.example.edges[edge]
    texts = [text(item.example.responses[i]) for i in (ends.better, ends.worse)]
    prompt = item.example.prompt
    return {
        "uid": item.uid,
        "label": item.label,
        "part": item.part,
        "path": list(item.path),
        "gap": float(result.gaps[edge]),
        "prompt": _cut("" if prompt is None else prompt if isinstance(prompt, str) else _turns(prompt)),
        "better": _cut(texts[0]),
        "worse": _cut(texts[1]),
        "sources": [item.sources[i] for i in (ends.better, ends.worse)] if item.sources else [],
    }


def text(response: Any) -> str:
    """A response as people read it."""
    if isinstance(response, str):
        return response
    return _turns(response) if response and isinstance(response[0], dict) else f"{len(response)} token ids"


def _turns(messages: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in messages)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]} [... {len(text) - TEXT:,} characters more]"


def result_json(result: Data) -> str:
    """The file's text: a key a line, and an item a line."""
    lines = []
    for key, value in result.items():
        if key in ("items", "cells", "worst", "votes") and value:
            inner = ",\n".join(f"  {json_line(v) if isinstance(v, dict) else json.dumps(_plain(v))}" for v in value)
            lines.append(f' "{key}": [\n{inner}\n ]')
        else:
            lines.append(f' "{key}": {json_line({"": value})[5:-1]}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_result(path: str | Path) -> Data:
    """A result file, as `suite_result` made it (null stands for nan).

    Raises:
        UserError: it is none.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that rmfast eval --out wrote") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error}); give a file that rmfast eval --out wrote") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT or "items" not in result:
        raise UserError(f"{path}: no result of rmfast eval (format {FORMAT}); evaluate again with --out")
    return result
