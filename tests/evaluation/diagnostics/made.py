"""Results whose truth is known."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from rmfast.data.example import Edge, Example
from rmfast.evaluation.suites.answers import Answers
from rmfast.evaluation.suites.base import Item, Result, Rows, Suite, Unscored
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import SuiteResult, result_json, suite_result

RNG = np.random.default_rng


def made(
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[Sequence[float]] | None = None,
    *,
    suite: Suite | None = None,
    prompts: Sequence[int] | None = None,
    writers: Sequence[Sequence[str]] | None = None,
    parts: Sequence[str] | None = None,
    paths: Sequence[tuple[str, ...]] | None = None,
    uids: Sequence[str] | None = None,
    right: Sequence[int] | None = None,
    name: str = "model",
    votes: list[np.ndarray] | None = None,
    data: str = "folder",
    skip: Collection[int] = (),
) -> SuiteResult:
    """A result file read back: each row's first answers (`right` of them) are better than all its others.

    Rows in `skip` the model could not score.
    """
    n = len(rewards)
    items, results, unscored = [], [], []
    for i, own in enumerate(rewards):
        better = 1 if right is None else right[i]
        edges = tuple(Edge(b, w) for b in range(better) for w in range(better, len(own)))
        prompt = i if prompts is None else prompts[i]
        item = Item(
            uid=str(i) if uids is None else uids[i],
            label=f"{data}/rows.jsonl:{i + 1}",
            part="pairwise" if parts is None else parts[i],
            path=() if paths is None else paths[i],
            example=Example(f"prompt {prompt}", tuple(f"{i} {j}" for j in range(len(own))), edges),
            writers=() if writers is None else tuple(writers[i]),
            extra={"right": better},
        )
        items.append(item)
        if i in skip:
            unscored.append(Unscored(item.label, item.part, item.path, "too long", f"{900 + i} tokens"))
            continue
        r = np.array(own, dtype=np.float64)
        results.append(Result(item, np.array([r[e.better] - r[e.worse] for e in edges]), r))
    size = (
        [np.array(own, dtype=np.float64) for own in lengths] if lengths else [np.arange(len(r)) + 1.0 for r in rewards]
    )
    left = [i for i in range(n) if i not in skip]
    votes = None if votes is None else [votes[i] for i in left]
    answers = Answers(results, unscored, [size[i] for i in left], "tokens", votes)
    chosen = suite or find_suite("pairwise")
    result = suite_result(chosen, Rows(tuple(items)), answers, about={"name": name, "kind": "reward model"}, data=data)
    assert len(result.items) + len(unscored) == n
    return SuiteResult.from_json(json.loads(result_json(result.to_json())))


def changed(result: SuiteResult, place: int, **change: object) -> SuiteResult:
    """The result with other values in one of its items."""
    items = list(result.items)
    items[place] = replace(items[place], **change)
    return replace(result, items=items)
