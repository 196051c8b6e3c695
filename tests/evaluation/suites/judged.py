"""Suites judged by a made-up reward of each text, and files to judge."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.evaluation.suites.base import Cell, Result, Rows, Suite, cells
from rmfast.evaluation.suites.shared import results_of, share

Reward = Callable[[str], float]


def judged(suite: Suite, rows: Rows, reward: Reward) -> tuple[list[Result], dict[Any, Cell], dict[str, float]]:
    """Results, cells by (part, path) and headline where a response is worth `reward` of its text."""
    shared = share(rows.items)
    rewards = [np.array([reward(text_of(r)) for r in example.responses]) for example in shared.examples]
    results = results_of(rows.items, shared, rewards)
    found = cells(suite, results)
    return results, {(cell.part, cell.path): cell for cell in found}, suite.headline(found, results)


def text_of(response: Any) -> str:
    return response if isinstance(response, str) else response[-1]["content"]


def write_json(path: Path, rows: Sequence[Any]) -> Path:
    """A JSON list, or lines where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def numbers(seed: int) -> Callable[[], str]:
    """Texts that are numbers of one digit, so that `float` is a reward with ties."""
    draw = random.Random(seed)
    return lambda: str(draw.randint(0, 9))


def causes(rows: Rows) -> list[str]:
    return [row.cause for row in rows.unscored]
