"""A prompt that is given twice is used once and noted; one that is given in two ways that differ is a bad row."""

import json
from typing import Any

import pytest

from rmfast.data.beside import IDS_ALONE
from rmfast.data.columns import read_columns
from rmfast.data.example import BadRow
from rmfast.data.ids import TWICE as IDS_TWICE
from rmfast.data.ids import TWICE_SOME as IDS_TWICE_SOME
from rmfast.data.parts import OTHER_PROMPTS, TEXT_PROMPT, TWICE, TWICE_SOME, WRITTEN
from rmfast.data.prompt import prompt_key
from rmfast.data.rows import parse_row

ASK = "What is the capital of Peru?"
USER, SYSTEM = {"role": "user", "content": ASK}, {"role": "system", "content": "Be brief."}
DIALOGUE = f"Human: {ASK}\n\nAssistant:"
CHINESE = "秘鲁的首都是哪一座城市？请只回答城市名称。"
BEFORE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(prompt: Any, front: Any) -> dict[str, Any]:
    """A pair whose answers begin with `front`."""
    ends = [" Lima.", " Quito."] if isinstance(front, str) else [[say("Lima.")], [say("Quito.")]]
    return {"prompt": prompt, "chosen": front + ends[0], "rejected": front + ends[1]}


def kinds(row: dict[str, Any]) -> list[str]:
    return [note.kind for note in parse_row(row).notes]


@pytest.mark.parametrize(
    ("prompt", "front", "used"),
    [
        ([USER], [USER], [USER]),
        ([SYSTEM, USER], [SYSTEM, USER], [SYSTEM, USER]),
        ([SYSTEM, USER], [USER], [SYSTEM, USER]),  # the answers leave the system turn out
        ([USER], [SYSTEM, USER], [SYSTEM, USER]),  # the prompt does
        ([*BEFORE, USER], [USER], [*BEFORE, USER]),
        ([*BEFORE, USER], [*BEFORE, USER], [*BEFORE, USER]),
        ([USER | {"content": f"{ASK}\n"}], [USER], [USER | {"content": f"{ASK}\n"}]),
        (DIALOGUE, DIALOGUE, DIALOGUE),
        (f"{DIALOGUE}\n", DIALOGUE, DIALOGUE),
        ("Name the capital of", "Name the capital of", "Name the capital of"),
        (CHINESE, CHINESE, CHINESE),
    ],
)
def test_a_prompt_that_the_answers_begin_with_is_used_once(prompt: Any, front: Any, used: Any) -> None:
    example = parse_row(pair(prompt, front))
    assert example.prompt == used
    assert example.responses == ((" Lima.", " Quito.") if isinstance(used, str) else ([say("Lima.")], [say("Quito.")]))
    assert [note.kind for note in example.notes] == [TWICE]
    assert prompt_key(example) == prompt_key(parse_row(pair(used, "" if isinstance(used, str) else [])))


def test_one_answer_may_hold_the_prompt_and_the_other_not() -> None:
    row = {"prompt": [USER], "chosen": [USER, say("Lima.")], "rejected": [say("Quito.")]}
    assert parse_row(row).responses == ([say("Lima.")], [say("Quito.")]) and kinds(row) == [TWICE]
    row = {"prompt": DIALOGUE, "chosen": f"{DIALOGUE} Lima.", "rejected": " Quito."}
    assert parse_row(row).responses == (" Lima.", " Quito.") and kinds(row) == [TWICE]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Peru", "chosen": "Peru is a country.", "rejected": "Peru has a capital."},  # answers may begin so
        {"prompt": ASK, "chosen": f"{ASK} Lima.", "rejected": "Quito."},  # one answer's own echo
        {"prompt": "The cat and the do", "chosen": "The cat and the dog", "rejected": "The cat and the donkey"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": [USER, say("Lima.")], "chosen": [USER, say("a")], "rejected": [USER, say("b")]},  # asked again
    ],
)
def test_an_echo_is_an_answer(row: dict[str, Any]) -> None:
    example = parse_row(row)
    assert (example.prompt, *example.responses) == (row["prompt"], row["chosen"], row["rejected"])
    one_sided = row["rejected"] == "Quito."  # counted, as it may be a prompt that was joined to one side alone
    assert [note.kind for note in example.notes] == [TWICE_SOME] * one_sided


def test_an_answer_that_says_the_last_turn_again_keeps_it() -> None:
    chosen, rejected = [say("Lima."), *BEFORE[:1], say("a")], [*BEFORE[:1], say("b")]
    example = parse_row({"prompt": [USER, say("Lima.")], "chosen": chosen, "rejected": rejected})
    assert example.responses == (chosen, rejected) and not example.notes


def test_a_question_beside_texts_that_hold_the_dialogue_is_used_once() -> None:
    row = pair(ASK, f"\n\n{DIALOGUE}")
    example = parse_row(row)
    assert example.prompt is None and example.responses == (row["chosen"], row["rejected"]) and kinds(row) == [TWICE]
    assert dict(example.columns) == {"prompt": "repeated", "chosen": "chosen", "rejected": "rejected"}


@pytest.mark.parametrize("front", [[USER], [SYSTEM, USER], [USER, say("Lima?"), BEFORE[0]], [*BEFORE, USER]])
def test_a_text_prompt_is_one_of_the_conversations_turns(front: list[dict[str, str]]) -> None:
    row = pair(ASK, front)
    example = parse_row(row)
    assert example.prompt is None and example.responses == (row["chosen"], row["rejected"]) and kinds(row) == [TWICE]
    assert prompt_key(example) == prompt_key(parse_row(pair(front, [])))


def test_a_text_prompt_of_answers_alone_is_the_users_turn() -> None:
    row = pair(ASK, [])
    assert parse_row(row).prompt == [USER] and kinds(row) == [TEXT_PROMPT]
    assert parse_row({"prompt": ASK, "responses": [[say("a")], [say("b")]]}).prompt == [USER]


@pytest.mark.parametrize(
    "row",
    [
        pair([USER], [USER | {"content": "And of Chile?"}]),
        pair([SYSTEM, USER], [SYSTEM | {"content": "Be long."}, USER]),
        pair([USER], [SYSTEM, USER | {"content": "And of Chile?"}]),
        pair("And of Chile?", [USER]),
        pair("Hello", [*BEFORE, USER]),
    ],
)
def test_a_prompt_that_the_conversation_contradicts_is_a_bad_row(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(row)
    assert caught.value.cause == "contradiction" and "prompt=ignore" in caught.value.detail


def test_a_prompt_of_nothing_but_a_system_turn_takes_what_the_answers_share() -> None:
    example = parse_row(pair([SYSTEM], [USER]))
    assert example.prompt == [SYSTEM, USER] and example.responses[0] == [say("Lima.")] and not example.notes
    assert prompt_key(example) == prompt_key(parse_row(pair(None, [SYSTEM, USER])))


# --- ready ids


IDS = {"prompt_ids": [5, 6, 7, 8], "chosen_ids": [1], "rejected_ids": [2, 3]}


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids_chosen": [5, 6, 7, 8, 1], "input_ids_rejected": [5, 6, 7, 8, 2, 3]},
        {
            "input_ids_chosen": [5, 6, 7, 8, 1, 0], "attention_mask_chosen": [1, 1, 1, 1, 1, 0],
            "input_ids_rejected": [5, 6, 7, 8, 2, 3], "attention_mask_rejected": [1, 1, 1, 1, 1, 1],
        },
        {
            "chosen_input_ids": [0, 0, 5, 6, 7, 8, 1], "chosen_attention_mask": [0, 0, 1, 1, 1, 1, 1],
            "rejected_input_ids": [5, 6, 7, 8, 2, 3, 0], "rejected_attention_mask": [1, 1, 1, 1, 1, 1, 0],
        },
        IDS | {"chosen_input_ids": [1, 0], "chosen_attention_mask": [1, 0]},
        IDS | {"prompt_input_ids": [0, 5, 6, 7, 8], "prompt_attention_mask": [0, 1, 1, 1, 1]},
        IDS | {"chosen_ids": [5, 6, 7, 8, 1], "rejected_ids": [5, 6, 7, 8, 2, 3]},  # the prompt twice
        {
            "chosen_ids": [5, 6, 7, 8, 1], "rejected_ids": [[5, 6, 7, 8, 2, 3, 0]],
            "rejected_attention_mask": [[1, 1, 1, 1, 1, 1, 0]],
        },
    ],
)  # fmt: skip
def test_ready_ids_are_cut_by_their_masks_and_given_once(row: dict[str, Any]) -> None:
    assert parse_row(row).responses == ([5, 6, 7, 8, 1], [5, 6, 7, 8, 2, 3]) == parse_row(IDS).responses


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ({"chosen_attention_mask": [1, 1]}, "wrong type"),
        ({"rejected_attention_mask": [1, 2]}, "wrong type"),
        ({"rejected_ids": [2, 3, 4], "rejected_attention_mask": [1, 0, 1]}, "wrong type"),
        ({"chosen_attention_mask": [0]}, "empty"),
        ({"chosen_attention_mask": 1}, "wrong type"),
        ({"chosen_input_ids": [2]}, "contradiction"),
        ({"prompt_input_ids": [5]}, "contradiction"),
        ({"chosen_attention_mask": [1], "attention_mask_chosen": [0]}, "contradiction"),
    ],
)
def test_ids_that_do_not_fit_together_are_bad_rows(more: dict[str, Any], cause: str) -> None:
    with pytest.raises(BadRow) as caught:
        parse_row(IDS | more)
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        (IDS | {"rejected_ids": [5, 6, 7, 8, 2]}, [IDS_TWICE_SOME]),
        (IDS | {"prompt_ids": [5], "chosen_ids": [5, 1], "rejected_ids": [5, 2]}, [IDS_TWICE_SOME]),
        (IDS | {"chosen_ids": [5, 6, 7, 8, 1], "rejected_ids": [5, 6, 7, 8, 2]}, [IDS_TWICE]),
        (IDS, []),
    ],
)
def test_answers_that_begin_with_the_prompts_ids_are_noted(row: dict[str, Any], kinds: list[str]) -> None:
    example = parse_row(row)
    assert [note.kind for note in example.notes] == kinds
    cut = 4 if kinds == [IDS_TWICE] else 0
    assert example.responses == tuple(row["prompt_ids"] + row[f"{side}_ids"][cut:] for side in ("chosen", "rejected"))


def test_an_order_beside_ids_must_be_theirs() -> None:
    example = parse_row(IDS | {"scores": [2.0, 1.0], "tools": [{"name": "f"}], "question": "d"})
    assert dict(example.columns) | {"scores": "scores", "tools": "ignore", "question": "ignore"} == dict(
        example.columns
    )
    with pytest.raises(BadRow, match="contradiction.*`scores` do not"):
        parse_row(IDS | {"scores": [1.0, 2.0]})


def test_texts_beside_ids_that_cannot_be_compared_are_noted() -> None:
    for more in ({"prompt": 3}, {"chosen": ["a", "b"]}):
        example = parse_row(IDS | more)
        assert example.responses == parse_row(IDS).responses and not example.texts
        assert [tuple(note) for note in example.notes] == [(IDS_ALONE, ", ".join(more))]
        assert set(dict(example.columns).values()) == {"prompt_ids", "chosen_ids", "rejected_ids", "ignore"}


def test_a_history_that_the_prompt_holds_is_used_once() -> None:
    columns = read_columns("history=history")
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": [system, *BEFORE, USER], "history": [["Hi", "Hello"]], "chosen": "a", "rejected": "b"}
    example = parse_row(row, columns)
    assert example.prompt == row["prompt"] and [note.kind for note in example.notes] == [TWICE]
    assert parse_row(row | {"prompt": [system, USER]}, columns).prompt == [system, *BEFORE, USER]


def test_answers_that_begin_with_the_question_are_answers_without_it() -> None:
    row = {"prompt": [USER], "chosen": f"{ASK} Lima.", "rejected": f"{ASK} Quito."}
    example = parse_row(row)
    assert example.responses == ("Lima.", "Quito.") and [note.kind for note in example.notes] == [TWICE]


def test_answers_may_begin_with_a_short_statement() -> None:
    said = "Cats are nice animals"
    row = {"prompt": [{"role": "user", "content": said}], "chosen": f"{said} indeed.", "rejected": f"{said}, no."}
    example = parse_row(row)
    assert example.responses == (row["chosen"], row["rejected"])
    assert [note.kind for note in example.notes] == [TWICE_SOME]


def test_a_prompt_that_ends_in_an_answer_must_be_one_of_them() -> None:
    row = {"prompt": [USER, {"role": "assistant", "content": "Lima."}], "chosen": "Lima.", "rejected": "Quito."}
    assert parse_row(row).prompt == [USER]
    with pytest.raises(BadRow, match="contradiction"):
        parse_row(row | {"chosen": "Cuzco."})


def test_another_dialogue_than_the_prompt_is_a_contradiction() -> None:
    answers = {side: f"Human: {ASK}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    with pytest.raises(BadRow, match="another dialogue"):
        parse_row({"prompt": "Human: What is the capital of Chile?\n\nAssistant:"} | answers)
    assert parse_row({"prompt": "Hi?"} | {k: v.replace(ASK, "Hi?") for k, v in answers.items()}).prompt is None


def test_answers_to_different_prompts_are_noted() -> None:
    other = {"role": "user", "content": "And of Chile?"}
    row = {"chosen": [USER, say("a")], "rejected": [other, say("b")]}
    assert [note.kind for note in parse_row(row).notes] == [OTHER_PROMPTS]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_one_answer_may_be_messages_and_the_other_messages_as_text(side: str) -> None:
    """A column of mixed shape comes out of `datasets` decoded, a column of nothing but text does not."""
    row = {
        "prompt": [{"role": "user", "content": "Who?"}],
        "chosen": [{"role": "assistant", "content": "I."}],
        "rejected": [{"role": "assistant", "content": "You."}],
    }
    example = parse_row(row | {side: json.dumps(row[side])})
    assert (example.prompt, example.responses) == (parse_row(row).prompt, parse_row(row).responses)
    assert [note.kind for note in example.notes] == [WRITTEN]
    with pytest.raises(BadRow, match="wrong type"):
        parse_row(row | {side: "You."})
