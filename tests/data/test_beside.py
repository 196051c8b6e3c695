"""Texts beside ready token ids: the same is used once, another text is a bad row, a cut one is noted."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data.beside import PART
from rmfast.data.example import BadRow
from rmfast.data.rows import parse_row
from rmfast.data.tokenise import Encoded, encode

ASK, GOOD, POOR = "What is the capital of Peru?", "Lima is the capital of Peru.", "It may well be Quito, I think."
TURNS = [{"role": "user", "content": ASK}]


def ids_of(tokenizer: PreTrainedTokenizerFast, *texts: str) -> dict[str, list[int]]:
    sides = ("prompt_ids", "chosen_ids", "rejected_ids")
    return {side: tokenizer(text)["input_ids"] for side, text in zip(sides, texts, strict=True) if text}


def made(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> Encoded | BadRow:
    return encode(tokenizer, [parse_row(row)])[0]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


TEXTS = [
    {"prompt": ASK, "chosen": GOOD, "rejected": POOR},
    {"chosen": f" {GOOD}\n"},
    {"chosen": TURNS + say(GOOD), "rejected": TURNS + say(f"<think>hm</think>{POOR}")},
    {"prompt": TURNS, "chosen": [GOOD]},
]


@pytest.mark.parametrize("texts", TEXTS, ids=str)
@pytest.mark.parametrize("apart", [True, False])
def test_texts_that_say_the_same_are_used_once(
    tokenizer: PreTrainedTokenizerFast, texts: dict[str, Any], apart: bool
) -> None:
    front, rest = (ASK, "") if apart else ("", f"<|im_start|>user\n{ASK}<|im_end|>\n")
    row = ids_of(tokenizer, front, rest + GOOD + "<|im_end|>", rest + POOR + "<|im_end|>")
    alone, both = made(tokenizer, row), made(tokenizer, row | texts)
    assert isinstance(alone, Encoded) and isinstance(both, Encoded)
    assert [ids.tolist() for ids in both.ids] == [ids.tolist() for ids in alone.ids] and both.notes == ()
    assert all(dict(parse_row(row | texts).columns)[name] == "repeated" for name in texts)


@pytest.mark.parametrize(
    "texts",
    [
        {"chosen": POOR, "rejected": GOOD},
        {"chosen": POOR},
        {"prompt": "And of Chile, a long country?"},
        {"rejected": say("Cuzco.")},
        {"prompt": ASK, "chosen": GOOD, "rejected": f"{GOOD} Or not."},
    ],
    ids=str,
)
def test_texts_that_say_another_thing_are_a_contradiction(
    tokenizer: PreTrainedTokenizerFast, texts: dict[str, Any]
) -> None:
    bad = made(tokenizer, ids_of(tokenizer, ASK, GOOD, POOR) | texts)
    assert isinstance(bad, BadRow) and bad.cause == "contradiction" and "NAME=ignore" in bad.detail


def test_another_prompt_in_front_is_a_contradiction_too(tokenizer: PreTrainedTokenizerFast) -> None:
    row = ids_of(tokenizer, "", f"{ASK} {GOOD}", f"{ASK} {POOR}")
    for texts in ({"prompt": "And of Chile?"}, {"prompt": "And of Chile?", "chosen": GOOD, "rejected": POOR}):
        assert isinstance(made(tokenizer, row | texts), BadRow)


@pytest.mark.parametrize("cut", [slice(5, None), slice(0, -5), slice(12, -5)], ids=str)
def test_sequences_that_were_cut_are_used_and_noted(tokenizer: PreTrainedTokenizerFast, cut: slice) -> None:
    row = ids_of(tokenizer, "", f"{ASK} {GOOD}", f"{ASK} {POOR}")
    row = {name: ids[cut] for name, ids in row.items()}
    result = made(tokenizer, row | {"prompt": ASK, "chosen": GOOD, "rejected": POOR})
    assert isinstance(result, Encoded) and [note.kind for note in result.notes] == [PART]
