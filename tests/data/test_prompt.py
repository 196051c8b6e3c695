"""Keys of prompts: rows of one prompt share theirs in whatever form they come, and no two prompts do."""

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data.example import Example
from rmfast.data.prompt import prompt_key
from rmfast.data.rows import parse_row
from rmfast.data.store import store_examples

ASK = "Is a tomato a fruit?"
DIALOGUE = f"\n\nHuman: {ASK}\n\nAssistant: It depends.\n\nHuman: On what?\n\nAssistant:"
TURNS = [
    {"role": "user", "content": ASK},
    {"role": "assistant", "content": "It depends."},
    {"role": "user", "content": "On what?"},
]
CHATML = f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"
ALPACA = f"Below is a task.\n\n### Instruction:\n{ASK}\n\n### Response:\n"


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def implicit(front: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"chosen": front + chosen, "rejected": front + rejected}


SAME: dict[str, list[dict[str, Any]]] = {
    "text, white space": [
        {"prompt": ASK, "chosen": '" Yes', "rejected": '" No'},  # the last token of the prompt merges with the reply
        {"prompt": f"\n{ASK}\n", "chosen": "\nYes", "rejected": "\nNo"},
        {"prompt": ASK, "responses": ["Yes", "No", "Maybe"]},
        {"prompt": [{"role": "user", "content": f"{ASK} "}], "chosen": "Yes", "rejected": "No"},
        implicit([{"role": "user", "content": ASK}], answer("Yes"), answer("No")),
    ],
    "dialogue in text": [
        implicit(DIALOGUE, " Yes, it is a berry.", " Yes, and a vegetable."),
        implicit(DIALOGUE, " Yes, it is a berry.", " No idea."),
        implicit(DIALOGUE, " Note: it is:\nAnswer: a", " Note: it is:\nAnswer: b"),
        implicit(f"{DIALOGUE} Yes", ".", ", it is."),
        {"prompt": DIALOGUE, "chosen": " Yes", "rejected": " No"},
        {"prompt": "", **implicit(DIALOGUE, " Yes", " No")},
    ],
    "dialogue in messages": [
        {"prompt": TURNS, "chosen": "Yes", "rejected": "No"},
        implicit(TURNS, answer("Yes, a berry"), answer("Yes, no")),
        implicit(TURNS, answer("Never"), answer("Yes, a berry")),
        {"prompt": [], **implicit(TURNS, answer("Yes"), answer("No"))},
    ],
    "rendered chat": [implicit(CHATML, "Yes, a", "Yes, b"), implicit(CHATML, "No", "Yes")],
    "instruction": [implicit(ALPACA, "Yes, a", "Yes, b"), implicit(ALPACA, "No", "Yes")],
    "question and answer": [implicit(f"Q: {ASK}\nA:", " Yes, a", " Yes, b"), implicit(f"Q: {ASK}\nA:", " No", " Yes")],
    "no speaker": [implicit("One two ", "three", "four"), implicit("One two", " four", " three")],
    "nothing shared": [{"chosen": "Yes", "rejected": "No"}, {"chosen": "No", "rejected": "Yes"}],
    "nothing but a system prompt": [
        implicit([{"role": "system", "content": "Be kind."}], [{"role": "user", "content": u}, *answer("x")], last)
        for u, last in (("a", [{"role": "user", "content": "b"}, *answer("y")]),) * 2
    ],
    "ids": [
        {"prompt_ids": [1, 7, 8], "chosen_ids": [9, 4], "rejected_ids": [9, 5]},
        {"prompt_ids": [1, 7, 8], "chosen_ids": [6], "rejected_ids": [9]},
        {"chosen_ids": [1, 7, 8, 6], "rejected_ids": [1, 7, 8, 9]},
    ],
    "other ids": [{"chosen_input_ids": [1, 2, 3], "rejected_input_ids": [1, 4]}],  # a bos is no prompt
    "yet other ids": [{"chosen_input_ids": [1, 5, 3], "rejected_input_ids": [1, 6]}],
}
GUESSED = {
    "dialogue in text": 4 + 1,
    **{"rendered chat": 2, "instruction": 2, "question and answer": 2, "no speaker": 2, "nothing shared": 2},
    **{"nothing but a system prompt": 2, "ids": 1, "other ids": 1, "yet other ids": 1},
}


def test_rows_of_one_prompt_share_a_key_and_others_do_not() -> None:
    keys = {name: {prompt_key(parse_row(row))[0] for row in rows} for name, rows in SAME.items()}
    assert {name: len(own) for name, own in keys.items()} == dict.fromkeys(SAME, 1)
    assert len(set.union(*keys.values())) == len(SAME)
    assert all(0 <= key < 2**64 for own in keys.values() for key in own)


def test_what_was_guessed() -> None:
    counts = {name: sum(prompt_key(parse_row(row))[1] for row in rows) for name, rows in SAME.items()}
    assert counts == dict.fromkeys(SAME, 0) | GUESSED
    # Conversations that part before their last turn.
    early = [[TURNS[0], *answer(text), TURNS[2], *answer("z")] for text in ("x", "y")]
    key, guessed = prompt_key(parse_row({"chosen": early[0], "rejected": early[1]}))
    assert guessed and key == prompt_key(Example(ASK, ("a",)))[0]


def test_the_store_keeps_them(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [parse_row(row) for row in (*SAME["text, white space"], *SAME["dialogue in text"])]
    made = store_examples(rows, tokenizer)
    assert made.prompt.dtype == np.uint64 and made.prompt.tolist() == [prompt_key(row)[0] for row in rows]
    assert made.meta["guessed_prompts"] == 5


@pytest.mark.parametrize(
    "row", [{"chosen_ids": [1], "rejected_ids": [2], "prompt_ids": 5}, {"chosen": [], "rejected": []}]
)
def test_odd_rows_are_bad_rows_still(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"wrong|empty|no edge"):
        parse_row(row)
