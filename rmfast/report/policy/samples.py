"""Samples to read: the best, the worst and typical ones of the last evaluation or, without one, of the last rollout."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from rmfast.report.run_folder import Row, json_rows, number

SHOWN = 3  # of each kind


@dataclass(frozen=True)
class Read:
    """A prompt and an answer, with figures that are NaN where they are not known."""

    prompt: str
    answer: str
    stop_reason: str
    reward: float
    gold: float
    kl: float
    length: float
    members: tuple[float, ...] = ()
    """The reward of each member, where there are several."""


@dataclass(frozen=True)
class Samples:
    """`source`: the file they are from. Each kind is in the order of its title: best first, worst first."""

    source: str
    count: int
    best: Sequence[Read]
    typical: Sequence[Read]
    worst: Sequence[Read]


def read_samples(run: Path, notes: list[str]) -> Samples | None:
    """The samples of a run folder; None without any that has a reward."""
    for folder, pattern, rows in (
        ("eval", r"samples-(\d+)\.jsonl", _of_evaluation),
        ("rollouts", r"step-(\d+)\.jsonl", _of_rollout),
    ):
        files = {int(m[1]): file for file in (run / folder).glob("*") if (m := re.fullmatch(pattern, file.name))}
        if not files:
            continue
        file = files[max(files)]
        found = [read for row in json_rows(file, notes, lambda row: "prompt" in row) for read in rows(row)]
        known = sorted((read for read in found if math.isfinite(read.reward)), key=lambda read: read.reward)
        if known:
            return _chosen(f"{folder}/{file.name}", known)
    return None


def read_pairs(run: Path, steps: tuple[float, float], notes: list[str]) -> list[tuple[Read, Read]]:
    """Answers to the same prompts at two evaluations, those first whose gold fell most; none where either kept none."""
    files = [run / "eval" / f"samples-{step:.0f}.jsonl" for step in steps]
    if not all(file.is_file() for file in files):
        return []
    before, after = (
        [read for row in json_rows(file, notes, lambda row: "prompt" in row) for read in _of_evaluation(row)]
        for file in files
    )
    pairs = [pair for pair in zip(before, after, strict=False) if pair[0].prompt == pair[1].prompt]
    known = {pair: pair for pair in pairs if math.isfinite(pair[0].gold - pair[1].gold)}
    return sorted(known.values(), key=lambda pair: pair[1].gold - pair[0].gold)[:SHOWN]


def _chosen(source: str, known: Sequence[Read]) -> Samples:
    """Of samples by their reward; none is shown twice."""
    each = min(SHOWN, max(len(known) // 3, 1))
    best, worst = known[-each:][::-1], known[: min(each, len(known) - each)]
    middle = known[len(worst) : len(known) - each]
    start = (len(middle) - min(each, len(middle))) // 2
    return Samples(source, len(known), best, middle[start : start + each], worst)


def _of_evaluation(row: Row) -> Iterator[Read]:
    reward, gold, kl, length = (number(row, name) for name in ("reward", "gold", "kl", "length"))
    members = takewhile(lambda key: key in row, (f"member_{member}/reward" for member in count()))
    texts = shown_prompt(row["prompt"]), shown_prompt(row.get("response")), str(row.get("stop_reason", ""))
    yield Read(*texts, reward, gold, kl, length, tuple(number(row, key) for key in members))


def _of_rollout(record: Row) -> Iterator[Read]:
    samples, texts = (found if isinstance(found := record.get(name), list) else [] for name in ("samples", "responses"))
    for sample, text in zip(samples, texts, strict=False):
        if not isinstance(sample, dict):
            continue
        ids = sample.get("ids")
        reward = number(sample, "reward" if "reward" in sample else "score")
        gold, kl = number(sample, "gold"), number(sample, "kl")
        length = float(len(ids)) if isinstance(ids, list) else math.nan
        rewards = found if isinstance(found := sample.get("rewards"), list) else []
        members = tuple(number({"reward": value}, "reward") for value in rewards)
        said = shown_prompt(record["prompt"]), shown_prompt(text), str(sample.get("stop_reason", ""))
        yield Read(*said, reward, gold, kl, length, members)


def shown_prompt(value: Any) -> str:
    """A text, or messages turn after turn."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
