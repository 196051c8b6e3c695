"""Messages in the shapes that files have: all become the same list, or a bad row that says what is odd."""

import json
from typing import Any

import pytest

from rmfast.data.example import BadRow
from rmfast.data.messages import read_messages, without_nulls
from rmfast.data.parts import SEVERAL_TURNS, WRITTEN, WRITTEN_SOME
from rmfast.data.rows import parse_row

ASK = {"role": "user", "content": "Capital of Peru?"}
GOOD = {"role": "assistant", "content": "Lima."}
POOR = {"role": "assistant", "content": "Quito."}
TOOL_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}
PLAIN = parse_row({"prompt": [ASK], "chosen": [GOOD], "rejected": [POOR]})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASK | {"content": [{"type": "text", "text": "Capital "}, {"type": "text", "text": "of Peru?"}]}]},
        {"prompt": [ASK | {"content": ["Capital of Peru?"]}]},
        {"prompt": {"role": ["user"], "content": ["Capital of Peru?"]}},
        {"prompt": {"role": ["user"], "content": ["Capital of Peru?"], "tool_calls": None}},
        {"prompt": ASK},
        {"prompt": [{"from": "human", "value": "Capital of Peru?"}]},
        {"prompt": [ASK | {"tool_calls": None, "name": None}]},
        {"chosen": GOOD, "rejected": POOR},
        {"chosen": {"from": "gpt", "value": "Lima."}, "rejected": {"from": "gpt", "value": "Quito."}},
        {"chosen": [GOOD | {"content": [{"type": "text", "text": "Lima.", "image": None}]}]},
        {"prompt": json.dumps([ASK])},
        {"prompt": str([ASK])},
        {"chosen": json.dumps([GOOD]), "rejected": json.dumps([POOR])},
    ],
)
def test_every_shape_is_the_same_conversation(row: dict[str, Any]) -> None:
    example = parse_row({"prompt": [ASK], "chosen": [GOOD], "rejected": [POOR]} | row)
    assert (example.prompt, example.responses) == (PLAIN.prompt, PLAIN.responses)


@pytest.mark.parametrize("role", ["environment", "observation", "tool", "ipython", "critic"])
def test_no_role_is_refused_by_its_name(role: str) -> None:
    prompt = [ASK, {"role": "assistant", "content": "f()"}, {"role": role, "content": "Lima"}]
    assert parse_row({"prompt": prompt, "chosen": [GOOD], "rejected": [POOR]}).prompt == prompt
    answer = {"role": "model", "content": "Lima."}
    assert parse_row({"prompt": [ASK], "chosen": [answer], "rejected": [POOR]}).responses[0] == [answer]


def test_a_system_turn_may_be_all_that_is_asked() -> None:
    system = [{"role": "system", "content": "Name a capital."}]
    assert parse_row({"prompt": system, "chosen": [GOOD], "rejected": [POOR]}).prompt == system


def test_a_function_call_of_sharegpt_is_a_tool_call() -> None:
    turns = [
        {"from": "human", "value": "f of 1?"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
    ]
    assert read_messages(turns)[1:] == [CALL, {"role": "tool", "content": "2"}]
    with pytest.raises(BadRow, match="function_call"):
        read_messages([turns[1] | {"value": "f(1)"}])


def test_written_messages_are_noted_and_other_texts_stay_texts() -> None:
    whole = {"chosen": json.dumps([ASK, GOOD]), "rejected": json.dumps([ASK, POOR])}
    example = parse_row(whole)
    assert example.responses == ([ASK, GOOD], [ASK, POOR]) and [note.kind for note in example.notes] == [WRITTEN]
    for row in (
        whole | {"rejected": "No."},  # one answer is plain text
        {"chosen": json.dumps([ASK]), "rejected": json.dumps([ASK])},  # no conversations that end in an answer
        {"chosen": "[1, 2]", "rejected": "[2]"},
    ):
        example = parse_row(row)
        assert example.responses == (row["chosen"], row["rejected"])
        assert [note.kind for note in example.notes] == [WRITTEN_SOME] * ("role" in row["chosen"])
    with pytest.raises(BadRow, match="neither JSON"):
        parse_row({"chosen": "[{'role': 'user', 'content'", "rejected": "[{'role': 'user'"})


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"role": "user", "content": [{"type": "image", "image": "x.png"}]}, "'image'"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "'input_audio'"),
        ({"role": "user", "content": [7]}, "'text'"),
        ({"role": ["user", "user"], "content": ["a"]}, "different lengths"),
        ({"role": "user"}, "without role or content"),
        ({"content": "a"}, "without role or content"),
    ],
)
def test_what_cannot_be_read_says_why(turn: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        read_messages([turn] if not isinstance(turn.get("role"), list) else turn)


def test_nulls_are_no_keys_at_any_depth_and_stay_in_lists() -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}, "b": None}, "enum": [None, 1]}}
    clean = {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}, "enum": [None, 1]}}
    calls = [{"function": {"name": "f", "arguments": {"a": 1, "b": None}}, "id": None}]
    row = {"prompt": [ASK], "chosen": [GOOD | {"tool_calls": calls}], "rejected": [POOR | {"tool_calls": None}]}
    example = parse_row(row | {"tools": [tool], "chat_template_kwargs": {"x": None, "y": {"z": None}}})
    assert example.tools == [clean] and example.template_kwargs == {"y": {}}
    assert example.responses == ([GOOD | {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}], [POOR])
    assert parse_row(row | {"tools": [json.dumps(tool)]}).tools == [clean]
    assert without_nulls({"a": [{"b": None}]}) == {"a": [{}]}


def test_nesting_without_end_is_a_bad_row() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(BadRow, match="nested"):
        parse_row(row | {"tools": [deep]})
    with pytest.raises(BadRow, match="nested"):
        parse_row(row | {"question": deep})


@pytest.mark.parametrize("prompt", [None, [ASK]])
def test_several_assistant_turns_are_one_answer_and_noted(prompt: Any) -> None:
    front = [ASK] if prompt is None else []
    other = {"role": "assistant", "content": "And so on."}
    tool = {"role": "tool", "content": "1"}
    row = {"prompt": prompt, "chosen": [*front, GOOD, other], "rejected": [*front, POOR]}
    example = parse_row(row)
    assert example.conversation(example.responses[0]) == [ASK, GOOD, other]
    assert [note.kind for note in example.notes] == [SEVERAL_TURNS]
    assert parse_row(row | {"chosen": [*front, CALL, tool, other]}).notes == ()
