"""What is kept of sampled responses, and that rmfast's reader takes it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmfast.data.row_kinds import PAIRS
from rmfast.data.rows import parse_row
from rmfast.evaluation.best_of_n.keep import (
    EQUAL,
    NO_TEXT,
    NONE_LEFT,
    NOT_FINITE,
    NOT_SCORED,
    SAME_TEXT,
    Kept,
    keep_rows,
)
from rmfast.evaluation.scoring.rows import ReadRow, read_file

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]


def rows_of(tmp_path: Path, *rows: dict[str, Any]) -> list[ReadRow]:
    """Rows as the sampler writes them, read back."""
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps({"edges": []} | row) + "\n" for row in rows), encoding="utf-8")
    return read_file(str(file))


def kept_of(tmp_path: Path, keep: Any, rewards: Any, *rows: dict[str, Any], **options: Any) -> Kept:
    scores = [np.array(of_row, dtype=float).reshape(-1, len(np.atleast_2d(of_row)[0])) for of_row in rewards]
    return keep_rows(rows_of(tmp_path, *rows), scores, keep, **options)


TEXT = {"prompt": "Name a colour: ", "responses": ["red", "blue", "green"], "source": "mine", "meta": {"a": 1}}


def test_the_best_text_is_a_demonstration_with_its_reward(tmp_path: Path) -> None:
    kept = kept_of(tmp_path, "best", [[1, 5, 5]], TEXT)
    assert kept.rows == [
        {"prompt": "Name a colour: ", "completion": "blue", "reward": 5.0, "source": "mine", "meta": {"a": 1}}
    ]  # of equal ones the first
    assert kept.passed_over == {}


def test_the_best_answer_to_messages_is_an_assistant_turn(tmp_path: Path) -> None:
    (row,) = kept_of(tmp_path, "best", [[1, 0]], {"prompt": CHAT, "responses": ["red", "blue"]}).rows
    assert row == {"prompt": CHAT, "completion": [{"role": "assistant", "content": "red"}], "reward": 1.0}


@pytest.mark.parametrize("prompt", ["Name a colour: ", CHAT], ids=["text", "messages"])
def test_a_pair_is_read_back_as_a_pair(tmp_path: Path, prompt: Any) -> None:
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]} if isinstance(prompt, list) else {}
    row = TEXT | {"prompt": prompt} | tools
    (pair,) = kept_of(tmp_path, "best-worst", [[1, -2, 0.5]], row).rows
    assert pair["reward_chosen"] == 1.0 and pair["reward_rejected"] == -2.0 and pair["meta"] == {"a": 1}
    read = parse_row(json.loads(json.dumps(pair)), kind=PAIRS)
    answers = ["red", "blue"]
    if isinstance(prompt, list):
        answers = [[{"role": "assistant", "content": text}] for text in answers]
        assert read.tools == tools["tools"]
    assert read.prompt == prompt and list(read.responses) == answers and read.notes == ()
    assert [(edge.better, edge.worse) for edge in read.edges] == [(0, 1)]


def test_rows_that_give_no_pair_are_counted(tmp_path: Path) -> None:
    same = {"prompt": "p", "responses": ["red", " red\n", "blue"]}
    kept = kept_of(tmp_path, "best-worst", [[2, 2, 2], [3, 1, 2], [1, 2, 3]], TEXT, same, TEXT)
    assert [row["chosen"] for row in kept.rows] == ["green"]
    assert kept.passed_over == {EQUAL: 1, SAME_TEXT: 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_rewards_and_empty_texts_are_neither_kept_nor_compared(tmp_path: Path, bad: float) -> None:
    empty = {"prompt": "p", "responses": [" ", "blue", "green"]}
    none = {"prompt": "p", "responses": ["", "blue"]}
    rewards = [[bad, 1, 2], [9, 1, 2], [1, bad]]
    best = kept_of(tmp_path, "best", rewards, TEXT, empty, none)
    assert [row["completion"] for row in best.rows] == ["green", "green"]
    assert best.passed_over == {NOT_FINITE: 2, NO_TEXT: 2, NONE_LEFT: 1}
    pairs = kept_of(tmp_path, "best-worst", rewards, TEXT, empty, none)
    assert [(row["chosen"], row["rejected"]) for row in pairs.rows] == [("green", "blue")] * 2


def test_all_rows_are_as_scoring_writes_them(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, TEXT, {"prompt": "no responses"}, TEXT | {"rewards": [9, 9, 9]})
    kept = keep_rows(rows, [np.array([[1.0, 2, np.nan]]), np.array([[1.0, 2, 3], [4, 5, 6]])], "all")
    one, bad, other = kept.rows
    assert one["responses"] == TEXT["responses"] and one["rewards"][:2] == [1, 2] and "completion" not in one
    assert bad["rewards"] is None and "responses" in bad["error"] or "chosen" in bad["error"]
    assert other["rewards"] == [[1, 2, 3], [4, 5, 6]]
    assert kept.passed_over == {NOT_SCORED: 1, NOT_FINITE: 1}


def test_rows_that_were_not_scored_are_kept_by_all_alone(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"prompt": "no responses"}, TEXT)
    kept = keep_rows(rows, [np.array([[1.0, 2, 3]])], "best")
    assert [row["completion"] for row in kept.rows] == ["green"] and kept.passed_over == {NOT_SCORED: 1}


def test_an_earlier_scoring_does_not_go_along(tmp_path: Path) -> None:
    (row,) = kept_of(tmp_path, "best", [[1, 2, 3]], TEXT | {"rewards": [3, 2, 1], "reward": 7}).rows
    assert "rewards" not in row and row["reward"] == 3.0


@pytest.mark.parametrize(
    ("options", "best"),
    [
        ({}, "blue"),
        ({"rule": "mean"}, "blue"),
        ({"rule": "median"}, "red"),
        ({"rule": "worst"}, "green"),
        ({"rule": "mean-k-std", "k": 2.0}, "green"),
        ({"rule": "majority"}, "red"),
        ({"rule": "mean", "standardised": True}, "red"),
    ],
)
def test_members_are_combined_by_the_rule(tmp_path: Path, options: dict[str, Any], best: str) -> None:
    rewards = [[3.0, 0.0, 2.0], [3.0, 0.5, 2.0], [-8.0, 30.0, 1.9]]
    (row,) = kept_of(tmp_path, "best", [rewards], TEXT, **options).rows
    assert row["completion"] == best
