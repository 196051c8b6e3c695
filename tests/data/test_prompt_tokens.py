"""Token ids of prompts to sample from: what the tokenizer and its chat template give, so that an answer may follow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rmfast.data.beside import PART
from rmfast.data.example import BadRow, Example
from rmfast.data.omissions import PROMPT_CUT, TOOLS_CUT
from rmfast.data.row_kinds import PROMPTS
from rmfast.data.rows import parse_row
from rmfast.data.tokenise import Encoded, encode
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import Reader

from .conftest import ALTERNATING, CHATML
from .templates import DEEPSEEK, GEMMA, LLAMA3, NEEDS_A_SYSTEM_TURN, QWEN3

Make = Callable[..., PreTrainedTokenizerFast]
EOS = "<|im_end|>"
TEXTS = [
    "The capital of Fra",
    "a",
    " naïve 日本語 🙂\n",
    f"said{EOS}",
    f"{EOS}",
    f"a{EOS}{EOS}",
    "\n\nHuman: Hi\n\nAssistant:",
]
HABITS = [{}, {"add_bos": True}, {"add_eos": True}, {"add_bos": True, "add_eos": True, "pad_is_eos": True}]
ASK = {"role": "user", "content": "Hello"}
KIND = {"role": "system", "content": "the dog"}
SAID = {"role": "assistant", "content": "hello world"}
FIND = [{"type": "function", "function": {"name": "find", "parameters": {}}}]


def one(tokenizer: PreTrainedTokenizerFast, example: Example) -> Encoded:
    (encoded,) = encode(tokenizer, [example])
    assert isinstance(encoded, Encoded), encoded
    return encoded


def prompt_ids(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    encoded = one(tokenizer, example)
    assert encoded.ids == () and encoded.answer_start == () and encoded.prompt is not None
    assert encoded.prompt.dtype == np.int32 and encoded.prefix == len(encoded.prompt)
    return encoded.prompt.tolist()


@pytest.mark.parametrize("habits", HABITS, ids=str)
def test_texts_as_the_tokenizer_has_them_without_the_eos_that_it_appends(make_tokenizer: Make, habits: dict) -> None:
    tokenizer = make_tokenizer(**habits)
    for text in TEXTS:
        whole = tokenizer(text)["input_ids"]
        expected = whole[:-1] if habits.get("add_eos") else whole
        assert prompt_ids(tokenizer, Example(text, ())) == expected
        assert expected == [0] * habits.get("add_bos", False) + tokenizer(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from(f"ab 日\n{EOS[0]}") | st.characters(codec="utf-8"), min_size=1), st.sampled_from(HABITS))
def test_any_text(make_tokenizer: Make, text: str, habits: dict) -> None:
    tokenizer = make_tokenizer(**habits)
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert prompt_ids(tokenizer, Example(text, ())) == [0] * habits.get("add_bos", False) + bare


def test_an_eos_in_front_that_is_the_bos_too_is_not_appended(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(add_bos=True)
    tokenizer.eos_token = "<s>"
    assert prompt_ids(tokenizer, Example("the cat<s>", ())) == tokenizer("the cat<s>")["input_ids"]


@pytest.mark.parametrize("template", [CHATML, ALTERNATING, LLAMA3, GEMMA, QWEN3, DEEPSEEK])
@pytest.mark.parametrize("habits", HABITS, ids=str)
def test_messages_as_the_template_has_them_with_its_generation_prompt(
    make_tokenizer: Make, habits: dict, template: str
) -> None:
    tokenizer = make_tokenizer(template=template, **habits)
    for turns in ([ASK], [ASK, SAID, ASK], [{"role": "user", "content": f"a{EOS}"}]):
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert prompt_ids(tokenizer, Example(turns, ())) == expected
        assert prompt_ids(tokenizer, parse_row({"messages": [*turns, SAID]}, kind=PROMPTS)) == expected


def test_tools_and_arguments_reach_the_template(make_tokenizer: Make) -> None:
    template = "{{ mood }}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + CHATML
    tokenizer = make_tokenizer(template=template)
    example = parse_row({"prompt": [ASK], "tools": FIND, "chat_template_kwargs": {"mood": "calm"}}, kind=PROMPTS)
    expected = f"calmfind<|im_start|>user\nHello{EOS}\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt_ids(tokenizer, example)) == expected


def test_a_double_bos_is_mended_and_counted_as_in_responses(make_tokenizer: Make) -> None:
    adds, leaves = make_tokenizer(add_bos=True), make_tokenizer()
    assert prompt_ids(adds, Example("<s>the cat", ())) == adds("the cat")["input_ids"]
    assert one(adds, Example("<s>the cat", ())).double_bos == 1
    assert prompt_ids(leaves, Example("<s><s>the cat", ())) == leaves("<s><s>the cat")["input_ids"]
    assert one(leaves, Example("<s><s>the cat", ())).double_bos == 0


def test_ready_ids_stay_whatever_the_tokenizer_adds(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(add_bos=True, add_eos=True)
    assert prompt_ids(tokenizer, Example([7, 1, 0, 0, 1], ())) == [7, 1, 0, 0, 1]
    (bad,) = encode(tokenizer, [Example([7, len(tokenizer)], ())])
    assert isinstance(bad, BadRow) and str(bad).startswith("wrong type: a token id outside the tokenizer's vocabulary")


def test_text_beside_ready_ids_must_be_what_they_say(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("The capital of France")["input_ids"]
    whole, part, other = (
        parse_row({"prompt_ids": ids, "prompt": text}, kind=PROMPTS)
        for text in ("The capital of France", "Say: The capital of France is", "the dog")
    )
    assert prompt_ids(tokenizer, whole) == prompt_ids(tokenizer, part) == ids
    assert one(tokenizer, whole).notes == () and [note.kind for note in one(tokenizer, part).notes] == [PART]
    (bad,) = encode(tokenizer, [other])
    assert isinstance(bad, BadRow) and str(bad).startswith("contradiction: the token ids do not hold the text")


def test_prompts_and_answered_examples_in_one_batch(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(add_eos=True)
    both = encode(tokenizer, [Example("a", ()), Example(None, ("a", "b")), Example([ASK], ()), Example([ASK], ("a",))])
    ids = [[s.tolist() for s in encoded.sequences] for encoded in both if isinstance(encoded, Encoded)]
    bare, hello = tokenizer("a", add_special_tokens=False)["input_ids"], prompt_ids(tokenizer, Example([ASK], ()))
    assert ids[0] == [bare] and ids[1][0] == [*bare, 1]
    assert ids[2] == [hello] and ids[3][0][: len(hello)] == hello


def test_messages_without_a_chat_template_end_the_command(make_tokenizer: Make) -> None:
    with pytest.raises(UserError, match="the data holds messages but the tokenizer has no chat template"):
        encode(make_tokenizer(template=None), [Example([ASK], ())])


CUT_BY_TEMPLATE: list[tuple[str, Any, dict[str, Any], list[str]]] = [
    (CHATML, [KIND, ASK], {}, []),
    (CHATML, [ASK], {"tools": FIND}, [TOOLS_CUT]),
    ("{% for m in messages[-1:] %}{{ m.content }}{% endfor %}", [KIND, ASK], {}, [PROMPT_CUT]),
    ("{% for m in messages[:1] %}{{ m.content }}{% endfor %}", [KIND, ASK], {}, [PROMPT_CUT]),
]


@pytest.mark.parametrize(("template", "turns", "more", "notes"), CUT_BY_TEMPLATE)
def test_what_the_template_leaves_out_of_a_prompt_is_noted(
    make_tokenizer: Make, template: str, turns: Any, more: dict, notes: list[str]
) -> None:
    example = parse_row({"prompt": turns, **more}, kind=PROMPTS)
    assert [note.kind for note in one(make_tokenizer(template=template), example).notes] == notes


@pytest.mark.parametrize(
    ("template", "turns", "error"),
    [
        (NEEDS_A_SYSTEM_TURN, [ASK], "wrong roles: no system"),
        (ALTERNATING, [ASK, ASK], "wrong roles: roles must alternate"),
        ("{{ messages[7].content }}", [ASK], "template error"),
        ("", [ASK], "empty: the prompt has no tokens"),
        (DEEPSEEK, [{"role": "critic", "content": "x"}, ASK], "wrong roles: the chat template leaves out turns"),
        (CHATML, [{"role": "user", "content": "\ud800"}], "not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_tokenised(make_tokenizer: Make, template: str, turns: Any, error: str) -> None:
    (bad,) = encode(make_tokenizer(template=template), [Example(turns, ())])
    assert isinstance(bad, BadRow) and str(bad).startswith(error)


def test_a_text_of_half_a_character_is_a_bad_row(tokenizer: PreTrainedTokenizerFast) -> None:
    (bad,) = encode(tokenizer, [Example("a\ud800", ())])
    assert isinstance(bad, BadRow) and bad.cause == "not UTF-8"


def test_a_reader_tells_prompts_that_are_too_long(tokenizer: PreTrainedTokenizerFast) -> None:
    fits, over = Reader(tokenizer, window=3).read([Example([5, 6, 7], ()), Example([5, 6, 7, 8], ())])
    assert isinstance(fits, Encoded)
    assert isinstance(over, BadRow) and str(over) == "too long: 4 tokens, and the model takes 3"
