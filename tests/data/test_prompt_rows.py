"""Rows used as prompts to sample from: which prompt every shape holds, what becomes of its columns, what is refused."""

import json
from typing import Any

import pytest

from rmfast.data.columns import read_columns
from rmfast.data.example import BadRow, Example
from rmfast.data.parts import TEXT_PROMPT, TWICE, WRITTEN
from rmfast.data.prompt import prompt_key
from rmfast.data.prompt_rows import CUT, MARKED, PARTED
from rmfast.data.row_kinds import PROMPTS
from rmfast.data.rows import parse_row, read_row
from rmfast.errors import UserError

ASK = {"role": "user", "content": "Is a tomato a fruit?"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}
WHY = {"role": "user", "content": "Why?"}
SHORT = {"role": "user", "content": "So it is a fruit"}
KIND = {"role": "system", "content": "Be kind."}
TOOL = {"role": "tool", "content": ""}
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Is a tomato a fruit?\n\nAssistant:"
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
TOOLS = [{"name": "find"}]


def read(row: dict[str, Any], *words: str) -> Example:
    return read_row("file:1", row, read_columns(words), PROMPTS)


PLAIN: list[tuple[dict[str, Any], Any]] = [
    ({"prompt": "Hi "}, "Hi "),
    ({"prompt": [KIND, ASK]}, [KIND, ASK]),
    ({"prompt": [KIND]}, [KIND]),
    ({"prompt": [ASK, YES, TOOL]}, [ASK, YES, TOOL]),
    ({"prompt": ASK}, [ASK]),
    ({"prompt": {"role": ["user"], "content": ["Hi"]}}, [{"role": "user", "content": "Hi"}]),
    ({"prompt": [{"from": "human", "value": "Hi"}]}, [{"role": "user", "content": "Hi"}]),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, [{"role": "user", "content": "Hi"}]),
    ({"prompt": [5, 6]}, [5, 6]),
    ({"prompt_ids": [5, 6]}, [5, 6]),
    ({"prompt_input_ids": [0, 5, 6], "prompt_attention_mask": [0, 1, 1]}, [5, 6]),
    ({"input_ids_prompt": [5]}, [5]),
    ({"messages": [KIND, ASK]}, [KIND, ASK]),
    ({"prompt": None, "messages": [ASK]}, [ASK]),
    ({"prompt": "", "messages": [ASK]}, [ASK]),
]


@pytest.mark.parametrize(("row", "prompt"), PLAIN, ids=str)
def test_prompts_alone(row: dict[str, Any], prompt: Any) -> None:
    example = read(row)
    assert (example.prompt, example.responses, example.edges, example.notes) == (prompt, (), (), ())
    assert example.is_messages == (type(prompt[0]) is dict) and example.has_ids == (type(prompt[0]) is int)
    assert example.is_text == isinstance(prompt, str)


WITH_ANSWERS: list[tuple[dict[str, Any], Any, dict[str, str], list[str]]] = [
    ({"prompt": "Hi", "chosen": "a", "rejected": 7, "margin": "x"}, "Hi", {"prompt": "prompt"}, []),
    ({"prompt": [ASK], "completion": [YES], "source": "s"}, [ASK], {"prompt": "prompt"}, []),
    ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1], "rewards": [1, 2]}, "Hi", {"prompt": "prompt"}, []),
    ({"prompt": "Hi", "responses": [], "edges": []}, "Hi", {"prompt": "prompt"}, []),
    ({"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8]}, [5, 6], {"prompt_ids": "prompt_ids"}, []),
    ({"prompt": [ASK], "tools": json.dumps(TOOLS)}, [ASK], {"prompt": "prompt", "tools": "tools"}, []),
    ({"prompt": "Hi", "tools": TOOLS}, "Hi", {"prompt": "prompt"}, []),
    # What is odd about the answers alone is not said.
    ({"prompt": [SHORT], "chosen": "So it is a fruit, yes", "rejected": "No."}, [SHORT], {"prompt": "prompt"}, []),
    # Answers that hold the prompt: the one that the pair has.
    ({"prompt": "Hi", "chosen": [YES], "rejected": [NO]}, [{"role": "user", "content": "Hi"}], None, [TEXT_PROMPT]),
    (
        {"prompt": ASK["content"], "chosen": [ASK, YES], "rejected": [ASK, NO], "messages": [ASK, YES]},
        [ASK],
        {"prompt": "repeated", "chosen": "prompt", "rejected": "prompt", "messages": "repeated"},
        [TWICE],
    ),
    ({"prompt": [ASK, YES], "chosen": [YES], "rejected": [NO]}, [ASK], {"prompt": "prompt"}, [TWICE]),
    ({"prompt": ASK["content"], "chosen": HH + " a", "rejected": HH + " b"}, HH, None, [TWICE, MARKED]),
    # No prompt column.
    ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, [ASK], {"chosen": "prompt", "rejected": "prompt"}, []),
    ({"chosen": [KIND, ASK, YES, WHY, YES], "rejected": [KIND, ASK, YES, WHY, NO]}, [KIND, ASK, YES, WHY], None, []),
    ({"chosen": [ASK, YES, WHY, YES], "rejected": [ASK, NO, WHY, NO]}, [ASK], None, [PARTED]),
    ({"chosen": [KIND, YES], "rejected": [KIND, NO]}, [KIND], None, []),
    ({"chosen": HH + " Yes, a", "rejected": HH + " Yes, b"}, HH, {"chosen": "prompt", "rejected": "prompt"}, [MARKED]),
    ({"prompt": "", "chosen": HH + " Yes", "rejected": HH + " No"}, HH, None, [MARKED]),
    ({"chosen": CHATML + "Yes, a", "rejected": CHATML + "Yes, b"}, CHATML, None, [MARKED]),
    # Conversations that end in an answer.
    ({"messages": [ASK, YES]}, [ASK], {"messages": "prompt"}, [CUT]),
    ({"messages": [ASK, YES, NO]}, [ASK], {"messages": "prompt"}, [CUT]),
    ({"messages": json.dumps([ASK, YES])}, [ASK], {"messages": "prompt"}, [WRITTEN, CUT]),
    ({"prompt": [ASK, YES, WHY, YES, NO]}, [ASK, YES, WHY], {"prompt": "prompt"}, [CUT]),
    (
        {"prompt": ASK["content"], "messages": [ASK, YES, WHY, NO]},
        [ASK, YES, WHY],
        {"prompt": "repeated", "messages": "prompt"},
        [TWICE, CUT],
    ),
    (
        {"prompt": ASK["content"], "messages": [ASK]},
        [ASK],
        {"prompt": "repeated", "messages": "prompt"},
        [TWICE],
    ),
    ({"prompt": [ASK], "messages": [ASK, YES]}, [ASK], {"prompt": "prompt", "messages": "repeated"}, [TWICE]),
]


@pytest.mark.parametrize(("row", "prompt", "uses", "notes"), WITH_ANSWERS, ids=str)
def test_answers_beside_a_prompt_are_left_out_and_said_to_be(
    row: dict[str, Any], prompt: Any, uses: dict[str, str] | None, notes: list[str]
) -> None:
    example = read(row)
    assert (example.prompt, example.responses, example.edges) == (prompt, (), ())
    assert [note.kind for note in example.notes] == notes
    if uses is not None:
        assert dict(example.columns) == dict.fromkeys(row, "ignore") | uses


def test_tools_are_read_for_the_template() -> None:
    row = {"prompt": [ASK], "tools": json.dumps(TOOLS), "chat_template_kwargs": {"a": 1, "b": None}}
    assert (read(row).tools, read(row).template_kwargs) == (TOOLS, {"a": 1})


COLUMNS: list[tuple[str, dict[str, Any], Any]] = [
    ("question=user", {"question": "q", "answer": "a"}, [{"role": "user", "content": "q"}]),
    ("question=prompt", {"question": "q", "answer": "a"}, "q"),
    ("conversations=prompt", {"conversations": [ASK, YES]}, [ASK]),
    ("orca", {"system": "Be kind.", "question": ASK["content"], "chosen": "a", "rejected": "b"}, [KIND, ASK]),
    ("alpaca", {"instruction": "Do", "input": "it", "output": "a"}, [{"role": "user", "content": "Do\n\nit"}]),
    # The answers of layouts are not looked at, whatever they lack.
    (
        "alpaca",
        {"instruction": "Do", "input": "", "output_1": "a", "output_2": "b"},
        [{"role": "user", "content": "Do"}],
    ),
    ("ultrafeedback", {"instruction": "Do", "completions": "none"}, [{"role": "user", "content": "Do"}]),
    ("messages=ignore", {"prompt": "Hi", "messages": [ASK, YES]}, "Hi"),
]


@pytest.mark.parametrize(("word", "row", "prompt"), COLUMNS, ids=str)
def test_columns_of_other_names_and_layouts(word: str, row: dict[str, Any], prompt: Any) -> None:
    assert read(row, word).prompt == prompt


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "missing column: no `prompt` and no `messages`; the row has no columns"),
    ({"prompt": None, "id": 1}, "missing column: no `prompt` and no `messages`; the row has 'id'"),
    ({"prompt": ""}, "empty: the prompt has no text"),
    ({"prompt": " \n"}, "empty: the prompt has no text"),
    ({"prompt": []}, "empty: the prompt is an empty list"),
    ({"prompt_ids": []}, "empty: the prompt holds no token ids"),
    ({"prompt": [{"role": "user", "content": " "}]}, "empty: the user turn that is to be answered has no text"),
    ({"prompt": [YES]}, "wrong roles: the prompt has no turn to answer"),
    ({"prompt": 5}, "wrong type: the prompt is neither text nor a list of messages or of token ids but int"),
    ({"prompt": ["a", "b"]}, "wrong type: the prompt is neither text nor"),
    ({"prompt": [5, -1]}, "wrong type: `prompt` is not a list of token ids"),
    ({"prompt": [2**31]}, "bad number: `prompt` holds 2147483648"),
    ({"prompt": [{"role": "user"}]}, "wrong roles: a message without role or content"),
    ({"prompt": [ASK], "tools": "{"}, "wrong type: `tools` is a string that is not JSON"),
    ({"chosen": "Yes", "rejected": "No"}, "missing column: no `prompt`, and nothing that asks at the beginning of `ch"),
    ({"chosen": [YES], "rejected": [NO]}, "missing column: no `prompt`, and nothing that asks"),
    ({"chosen": [KIND, ASK, YES], "rejected": [KIND, WHY, NO]}, "missing column: no `prompt`, and nothing that asks"),
    ({"chosen_ids": [5], "rejected_ids": [6]}, "missing column: no `prompt` and no `messages`"),
    ({"prompt": "What else?", "chosen": [ASK, YES], "rejected": [ASK, NO]}, "contradiction: `prompt` is neither the"),
    ({"prompt": "What else?", "messages": [ASK, YES]}, "contradiction: `prompt` is neither the first nor the last"),
    ({"prompt": [ASK, YES], "chosen": [NO], "rejected": [NO]}, "contradiction: the prompt ends in an answer"),
]


@pytest.mark.parametrize(("row", "error"), BAD, ids=str)
def test_rows_without_a_prompt_that_can_be_known_are_bad_ones(row: dict[str, Any], error: str) -> None:
    with pytest.raises(BadRow) as raised:
        read(row)
    assert str(raised.value).startswith(error)


def test_nesting_that_is_too_deep_is_a_bad_row() -> None:
    deep: Any = "x"
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(BadRow, match="wrong type"):
        read({"prompt": [ASK], "tools": deep})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q"}, "file:1: `question`: looks like a prompt and is not used; .* such as question=user"),
        ({"prompt": "Hi", "system": "Be kind."}, "`system`: looks like a prompt"),
        ({"prompt": "Hi", "image": "a.png"}, "`image`: looks like a prompt"),
        ({"prompt": [ASK], "messages": [ASK, YES, WHY, NO]}, "`messages`: looks like a prompt"),
        ({"chosen": HH + " a", "rejected": HH + " b", "context": "Fruit."}, "`context`: looks like a prompt"),
    ],
    ids=str,
)
def test_a_column_that_looks_like_a_prompt_is_never_passed_over(row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(row)


def test_a_column_that_repeats_the_prompt_is_no_error() -> None:
    assert dict(read({"prompt": "Hi", "question": "Hi", "image": None}).columns) == {
        "prompt": "prompt",
        "question": "repeated",
    }


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": f"\n{HH}\n", "chosen": " Yes", "rejected": " No"},
        {"prompt": [KIND, ASK], "chosen": "Yes", "rejected": "No"},
        {"chosen": HH + " Yes", "rejected": HH + " No"},
        {"chosen": CHATML + "Yes", "rejected": CHATML + "No"},
        {"chosen": [ASK, YES, WHY, YES], "rejected": [ASK, YES, WHY, NO]},
        {"prompt": ASK["content"], "chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8]},
    ],
    ids=str,
)
def test_the_prompt_of_a_pair_has_the_key_of_the_pair(row: dict[str, Any]) -> None:
    assert prompt_key(read(row)) == (prompt_key(parse_row(row))[0], False)
