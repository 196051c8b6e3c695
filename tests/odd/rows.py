"""Odd rows of every kind: good ones of which a part was replaced, left out, doubled or added."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from rmfast.data.row_kinds import JUDGED, PAIRS, PROMPTS, RESPONSES, RowKind, demonstrations, samples
from tests.odd.values import some

USER, ANSWER = {"role": "user", "content": "Who sat?"}, {"role": "assistant", "content": "The cat."}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "look"}}]}
GOOD: tuple[dict[str, Any], ...] = (
    {"prompt": "The cat", "chosen": " sat", "rejected": " ran", "margin": 1.0, "weight": 0.5, "target": 0.9},
    {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c", "strength_mean": 2.0},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "A dog."}]},
    {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "No."}], "tools": [TOOL]},
    {"prompt": "x", "responses": [" a", " b", " c"], "edges": [[0, 1], [0, 2]], "margin": [1, 2]},
    {"prompt": "x", "responses": [" a", " b"], "ranks": [1, 0]},
    {"prompt": "x", "responses": [" a", " b"], "scores": [1.5, -2], "weight": 2},
    {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]},
    {"chosen_ids": [1, 3], "chosen_attention_mask": [1, 1], "rejected_ids": [1, 5], "rejected_attention_mask": [1, 1]},
    {"messages": [USER, ANSWER, USER, ANSWER], "chat_template_kwargs": {"thinking": False}},
    {"messages": [USER, CALL, {"role": "tool", "content": "a cat"}, ANSWER], "tools": [TOOL]},
    {"prompt": "The cat", "completion": " sat"},
    {"text": "The cat sat."},
    {"prompt": [USER]},
    {"prompt_ids": [1, 2, 3]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
)
NAMES = (
    *(name for row in GOOD for name in row), "chat_template_kwargs", "tools", "system", "history", "input", "target",
    "strength_std", "chosen_rank", "\0", "", "prompt ", "chosen_score", "edges", "weight",
)  # fmt: skip
RESERVED = ("chat_template", "tokenize", "add_generation_prompt", "messages", "tools", "tokenizer", "self", "documents")
KINDS: tuple[RowKind, ...] = (PAIRS, JUDGED, RESPONSES, PROMPTS, samples(2), demonstrations(), demonstrations("last"))


def odd_rows(seed: int, count: int) -> Iterator[tuple[RowKind, Any]]:
    """What is asked of a row, and the row: an object in nearly all cases."""
    draw = random.Random(seed)
    for _ in range(count):
        kind, row = draw.choice(KINDS), copy.deepcopy(draw.choice(GOOD))
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            _change(row, draw)
        yield kind, row


def _change(row: dict[str, Any], draw: random.Random) -> None:
    way = draw.random()
    if way < 0.45 and row:
        row[draw.choice(list(row))] = some(draw)
    elif way < 0.6:
        row[draw.choice(NAMES)] = some(draw)
    elif way < 0.65:
        row["chat_template_kwargs"] = {draw.choice(RESERVED): some(draw)}
    elif way < 0.7 and row:
        del row[draw.choice(list(row))]
    else:
        _inside(row, draw)


def _inside(value: Any, draw: random.Random) -> None:
    """Replace a part that is some way down."""
    places = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not places:
        return
    place = draw.choice(places)
    if isinstance(value[place], dict | list) and value[place] and draw.random() < 0.8:
        _inside(value[place], draw)
    else:
        value[place] = some(draw)
