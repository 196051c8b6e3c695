"""Every format of rows.parse_row and every cause for which it refuses a row."""

import json
import math
import pickle
import random
from typing import Any

import pytest

from rmfast.data.columns import AS_NAMED, read_columns
from rmfast.data.example import BadRow, Example
from rmfast.data.row_kinds import JUDGED, PAIRS, RESPONSES
from rmfast.data.rows import parse_row

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
POOR = {"role": "assistant", "content": "What?"}


def pairs(row: dict, **options: bool) -> list[tuple[int, int]]:
    return [(edge.better, edge.worse) for edge in parse_row(row, **options).edges]


@pytest.mark.parametrize(
    ("row", "prompt", "responses"),
    [
        ({"prompt": "Hi ", "chosen": "a", "rejected": "b"}, "Hi ", ("a", "b")),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "", ("a", "b")),
        ({"chosen": "Hi a", "rejected": "Hi b"}, None, ("Hi a", "Hi b")),
        ({"prompt": None, "chosen": "Hi a", "rejected": "Hi b", "margin": None}, None, ("Hi a", "Hi b")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [POOR]}, [USER], ([GOOD], [POOR])),
        ({"chosen": [USER, GOOD], "rejected": [USER, POOR]}, None, ([USER, GOOD], [USER, POOR])),
        ({"prompt": [USER], "chosen": "Hello!", "rejected": "What?"}, [USER], ("Hello!", "What?")),
        ({"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, None, ([1, 2], [1, 3])),
        ({"prompt_ids": [9], "chosen_ids": [1], "rejected_ids": [2, 3]}, None, ([9, 1], [9, 2, 3])),
        ({"chosen_input_ids": [1, 2], "rejected_input_ids": [1, 3]}, None, ([1, 2], [1, 3])),
    ],
)
def test_pair_formats(row: dict, prompt: object, responses: tuple) -> None:
    example = parse_row(row)
    assert (example.prompt, example.responses) == (prompt, responses)
    (edge,) = example.edges
    assert (edge.better, edge.worse, edge.margin, edge.target, edge.weight) == (0, 1, 0.0, 1.0, 1.0)
    assert math.isnan(edge.strength_mean) and math.isnan(edge.strength_std)


def test_string_answers_to_messages_become_assistant_turns() -> None:
    example = parse_row({"prompt": [USER], "chosen": "Hello!", "rejected": "What?"})
    assert example.is_messages
    assert example.conversation(example.responses[0]) == [USER, GOOD]


def test_one_chosen_over_many_rejected() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": ["b", "c", "d"]}
    assert parse_row(row).responses == ("a", "b", "c", "d")
    assert pairs(row) == [(0, 1), (0, 2), (0, 3)]
    assert pairs({"prompt": [USER], "chosen": [GOOD], "rejected": [[POOR], [POOR]]}) == [(0, 1), (0, 2)]
    assert pairs({"chosen_ids": [1], "rejected_ids": [[2], [3]]}) == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, [(0, 1), (0, 2), (1, 2)]),
        ({"ranks": [3, 1, 2]}, [(1, 2), (1, 0), (2, 0)]),
        ({"ranks": [1, 0, 1]}, [(1, 0), (1, 2)]),
        ({"scores": [0.5, -1, 2.0]}, [(2, 0), (2, 1), (0, 1)]),
        ({"scores": [1, 1, 0], "ranks": None}, [(0, 2), (1, 2)]),
        ({"edges": [[2, 0], [0, 1]]}, [(2, 0), (0, 1)]),
        ({"edges": [[2, 0]], "ranks": [2, 1, 0], "scores": [0, 1, 2]}, [(2, 0)]),
        ({"ranks": [0, 1, 2], "scores": [2, 1, 0]}, [(0, 1), (0, 2), (1, 2)]),
        ({"scores": [1, 5, 3], "chosen": "b", "rejected": "a"}, [(1, 2), (1, 0), (2, 0)]),
    ],
)
def test_rankings(columns: dict, expected: list) -> None:
    assert pairs({"prompt": "p", "responses": ["a", "b", "c"], **columns}) == expected


def test_several_right_answers_each_beat_each_wrong_one() -> None:
    row = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c", "d"], "margin": [1, 2, 3, 4]}
    assert parse_row(row).responses == ("a", "b", "c", "d")
    assert pairs(row) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert [edge.margin for edge in parse_row(row).edges] == [1, 2, 3, 4]
    assert pairs({"prompt": [USER], "chosen": [[GOOD], [GOOD]], "rejected": [POOR]}) == [(0, 2), (1, 2)]
    assert pairs({"chosen_ids": [[1], [2]], "rejected_ids": [3]}) == [(0, 2), (1, 2)]


def test_a_ranking_beside_a_pair_is_used_where_both_agree() -> None:
    row = {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, POOR], "responses": ["What?", "Hello!", "No."]}
    example = parse_row(row | {"scores": [1, 3, 2]})
    assert example.responses == ("What?", "Hello!", "No.") and len(example.edges) == 3
    # Numbers of other answers than the pair's say nothing of it.
    assert pairs(PAIR | {"scores": [1, 2, 3]}) == pairs(PAIR | {"scores": [2, 1]}) == [(0, 1)]


def test_ranking_of_k_has_every_pair() -> None:
    assert len(pairs({"prompt": "p", "responses": [str(i) for i in range(9)]})) == 36


def test_edge_columns_as_numbers_and_lists() -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "margin": [1, 0.5, None], "target": 0.9, "strength_mean": 2}
    example = parse_row(row | {"strength_std": [0, 1, 2], "weight": 3})
    assert [edge.margin for edge in example.edges] == [1.0, 0.5, 0.0]
    assert {edge.target for edge in example.edges} == {0.9}
    assert [(edge.strength_mean, edge.strength_std) for edge in example.edges] == [(2, 0), (2, 1), (2, 2)]
    assert {edge.weight for edge in example.edges} == {3.0} and not example.per_edge_weight
    assert parse_row(row | {"weight": [1, 2, 3]}).per_edge_weight
    assert parse_row({"chosen": "a", "rejected": "b", "margin": [2.5]}).edges[0].margin == 2.5


def test_template_arguments() -> None:
    row = {"chosen": [USER, GOOD], "rejected": [USER, POOR], "chat_template_kwargs": {"enable_thinking": False}}
    assert parse_row(row).template_kwargs == {"enable_thinking": False}
    assert parse_row(row | {"tools": '[{"name": "f"}]'}).tools == [{"name": "f"}]
    assert parse_row(row | {"tools": [{"name": "f"}]}).tools == [{"name": "f"}]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = {"prompt": [USER], "chosen": [GOOD], "rejected": [POOR]}
RANKED = {"prompt": "p", "responses": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({}, "missing column"),
        ({"prompt": "p", "chosen": "a"}, "missing column"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "missing column"),
        ({"chosen_ids": [1], "rejected": "b"}, "missing column"),
        (PAIR | {"prompt": 7}, "wrong type"),
        (PAIR | {"prompt": ["p"]}, "wrong type"),
        (PAIR | {"chosen": 7}, "wrong type"),
        (PAIR | {"chosen": [GOOD]}, "wrong type"),
        (PAIR | {"margin": "0.5"}, "wrong type"),
        (PAIR | {"margin": True}, "wrong type"),
        (PAIR | {"margin": [1, 2]}, "wrong type"),
        (PAIR | {"tools": "["}, "wrong type"),
        (PAIR | {"tools": {"name": "f"}}, "wrong type"),
        (PAIR | {"chat_template_kwargs": [1]}, "wrong type"),
        ({"chosen_ids": [1, -2], "rejected_ids": [1]}, "wrong type"),
        ({"chosen_ids": [1.0], "rejected_ids": [1]}, "wrong type"),
        ({"chosen_ids": [True], "rejected_ids": [1]}, "wrong type"),
        (RANKED | {"responses": "abc"}, "wrong type"),
        (RANKED | {"responses": ["a", None, "b"]}, "wrong type"),
        (RANKED | {"ranks": [1, 2]}, "wrong type"),
        (RANKED | {"ranks": 1}, "wrong type"),
        (RANKED | {"scores": [1, 2, "3"]}, "wrong type"),
        (RANKED | {"edges": [[0, 3]]}, "wrong type"),
        (RANKED | {"edges": [[1, 1]]}, "wrong type"),
        (RANKED | {"edges": [[-1, 0]]}, "wrong type"),
        (RANKED | {"edges": [0, 1]}, "wrong type"),
        (CHAT | {"chosen": [GOOD | {"content": [{"type": "image", "text": "a"}]}]}, "wrong type"),
        (CHAT | {"chosen": [GOOD | {"content": 3}]}, "wrong type"),
        (PAIR | {"chat_template_kwargs": "{"}, "wrong type"),
        (PAIR | {"rejected": ""}, "empty"),
        (PAIR | {"chosen": " \n"}, "empty"),
        (PAIR | {"rejected": ["b", ""]}, "empty"),
        (CHAT | {"chosen": [GOOD | {"content": ""}]}, "empty"),
        (CHAT | {"chosen": "a", "rejected": ""}, "empty"),
        (CHAT | {"rejected": "b"}, "wrong type"),
        (RANKED | {"responses": []}, "empty"),
        ({"chosen_ids": [1], "rejected_ids": []}, "empty"),
        (CHAT | {"prompt": [USER | {"role": None}]}, "wrong roles"),
        (CHAT | {"prompt": [{"role": "user"}]}, "wrong roles"),
        (CHAT | {"prompt": [{"content": "Hi"}]}, "wrong roles"),
        ({"chosen": [GOOD], "rejected": [POOR]}, "wrong roles"),
        (CHAT | {"chosen": [GOOD, {"role": "environment", "content": "4"}]}, "wrong roles"),
        (CHAT | {"prompt": []}, "wrong roles"),
        (CHAT | {"chosen": [USER]}, "wrong roles"),
        (CHAT | {"chosen": []}, "wrong roles"),
        (PAIR | {"rejected": []}, "no edge"),
        (RANKED | {"responses": ["a"]}, "no edge"),
        (RANKED | {"ranks": [1, 1, 1]}, "no edge"),
        (RANKED | {"edges": []}, "no edge"),
        (PAIR | {"margin": math.nan}, "bad number"),
        (PAIR | {"margin": math.inf}, "bad number"),
        (PAIR | {"margin": 1e300}, "bad number"),
        (PAIR | {"margin": 10_001}, "bad number"),
        (PAIR | {"margin": -10_000.5}, "bad number"),
        (PAIR | {"weight": 2e9}, "bad number"),
        (PAIR | {"margin": 10**400}, "bad number"),
        (PAIR | {"target": 1.5}, "bad number"),
        (PAIR | {"target": -0.1}, "bad number"),
        (PAIR | {"weight": -1}, "bad number"),
        (PAIR | {"strength_mean": math.nan}, "bad number"),
        (PAIR | {"strength_std": -1}, "bad number"),
        (RANKED | {"scores": [1, math.nan, 2]}, "bad number"),
        (PAIR | {"margin": 10**5000}, "bad number"),
        ({"chosen_ids": [2**70], "rejected_ids": [1]}, "bad number"),
        ({"chosen_ids": [2**31], "rejected_ids": [1]}, "bad number"),
        (RANKED | {"ranks": [0, 1, 2], "scores": [0, 1, 2]}, "contradiction"),
        (RANKED | {"edges": [[2, 0]], "ranks": [0, 1, 2]}, "contradiction"),
        (RANKED | {"edges": [[0, 1]], "scores": [1, 1, 0]}, "contradiction"),
        (RANKED | {"chosen": "b", "rejected": "a"}, "contradiction"),
        (RANKED | {"chosen": "d", "rejected": "a"}, "contradiction"),
        (PAIR | {"scores": [1, 2]}, "contradiction"),
        (PAIR | {"ranks": [2, 1]}, "contradiction"),
    ],
)
def test_bad_rows_have_their_cause(row: dict, cause: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(row)
    assert caught.value.cause == cause
    assert caught.value.detail and "\n" not in caught.value.detail


def test_scoring_takes_rows_without_edges_and_empty_or_equal_responses() -> None:
    example = parse_row({"prompt": "p", "responses": ["", "a", "a"], "ranks": [0, 0, 0]}, kind=RESPONSES)
    assert example.responses == ("", "a", "a") and example.edges == ()
    assert pairs({"prompt": [USER], "responses": [""]}, kind=RESPONSES) == []
    with pytest.raises(BadRow, match="no turn before the answer"):
        parse_row({"prompt": [], "responses": ["a"]}, kind=RESPONSES)


def test_tool_calls_stand_for_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    without_null = {key: value for key, value in call.items() if value is not None}
    assert parse_row(CHAT | {"chosen": [call]}).responses[0] == [without_null]


def test_bad_row_survives_pickling_and_prints_on_one_ascii_safe_line() -> None:
    bad = pickle.loads(pickle.dumps(BadRow("wrong type", "two\nlines \ud800" + "x" * 500)))
    assert bad.cause == "wrong type" and bad.detail.startswith("two lines \\ud800") and len(bad.detail) == 200
    str(bad).encode()


def test_tool_calls_and_arguments_of_the_template_may_be_json_text() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    answer = {"role": "assistant", "tool_calls": json.dumps([call])}
    assert parse_row(CHAT | {"chosen": [answer]}).responses[0] == [answer | {"tool_calls": [call]}]
    for kwargs in ("", "null", {"chat_template": None}):
        assert parse_row(CHAT | {"chat_template_kwargs": kwargs}).template_kwargs == {}
    with pytest.raises(BadRow, match="doubled key"):
        parse_row(CHAT | {"tools": '[{"name": "a", "name": "b"}]'})


def test_a_mask_beside_ids_of_no_such_name_is_refused() -> None:
    with pytest.raises(BadRow, match="chosen_attention_mask"):
        parse_row({"chosen": [4, 5, 0], "rejected": [4, 6, 7], "chosen_attention_mask": [1, 1, 0]})


def test_an_unmapped_question_is_told_before_the_missing_turn() -> None:
    with pytest.raises(BadRow, match="`question`: looks like a prompt"):
        parse_row({"question": "What is it?", "chosen": [CHAT_ANSWER], "rejected": [CHAT_ANSWER | {"content": "No."}]})


CHAT_ANSWER = {"role": "assistant", "content": "Yes."}


def odd_pair(rng: random.Random) -> dict[str, Any]:
    """A pair of texts or messages, some of them odd."""
    texts = [
        "Lima.",
        "",
        " a",
        "<b>",
        "Human: hi\n\nAssistant: yo",
        '[{"role": "user", "content": "a"}]',
        "the cat sat on a mat",
    ]
    turns = [{"role": role, "content": text} for role in ("user", "assistant", "system") for text in texts[:3]]

    def value() -> Any:
        return rng.choice([rng.choice(texts), rng.choices(turns, k=rng.randint(0, 3)), rng.choice(turns), None, 3])

    answers = {side: value() for side in ("chosen", "rejected")}
    if rng.random() < 0.3:
        answers = {side: "the cat sat on a mat" + rng.choice(texts) for side in answers}
    return answers | ({"prompt": value()} if rng.random() < 0.7 else {}) | ({"id": 1} if rng.random() < 0.3 else {})


def test_rows_of_a_pair_alone_are_read_as_all_others() -> None:
    """Columns that speak of another name take the long way."""
    rng, long_way = random.Random(0), read_columns(["other=ignore"])
    read = 0
    for _ in range(3000):
        row, empty = odd_pair(rng), rng.random() < 0.3
        made: list[Any] = []
        for columns in (AS_NAMED, long_way):
            try:
                example = parse_row(row, columns, JUDGED if empty else PAIRS)
                made.append([repr(getattr(example, name)) for name in Example.__slots__])
                read += 1
            except BadRow as bad:
                made.append((bad.cause, bad.detail))
        assert made[0] == made[1], row
    assert read > 500
