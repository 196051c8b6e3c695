"""Demonstrations: which tokens are targets, in every format and under every kind of chat template."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rmfast.data.columns import AS_NAMED, read_columns
from rmfast.data.demonstration_rows import SEVERAL_BEST, UNANSWERED
from rmfast.data.demonstrations import ANSWER_FIRST, OTHER_HEADER, encode_demonstrations
from rmfast.data.example import BadRow
from rmfast.data.parts import TWICE
from rmfast.data.row_kinds import PAIRS, Turns, demonstrations
from rmfast.data.rows import parse_row, read_row
from rmfast.data.tokenise import Encoded
from rmfast.errors import UserError

from .conftest import ALTERNATING, CHATML
from .templates import CHATML_MARKED, DEEPSEEK, GEMMA, LLAMA3, QWEN3, QWEN3_MARKED, ZEPHYR

Make = Callable[..., PreTrainedTokenizerFast]
EOS = "<|im_end|>"
SYSTEM = {"role": "system", "content": "the dog"}


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(text: str, **more: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | more


# The answers stand in the questions too: what searches for a text finds the wrong one.
TALK = [ask("say Paris"), say("Paris"), ask("Paris?  Paris"), say("the cat\n\nsat"), ask("a"), say("Paris")]


def encoded(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], turns: Turns = "all", **how: Any) -> Encoded:
    (made,) = encode_demonstrations(tokenizer, [parse_row(row, kind=demonstrations(turns), **how)], turns)
    assert isinstance(made, Encoded), made
    return made


def learnt(tokenizer: PreTrainedTokenizerFast, made: Encoded) -> list[str]:
    """The text of each run of targets."""
    ids, trained = made.ids[0], made.trained
    assert trained is not None and trained.shape == ids.shape and made.prefix == len(ids) and not trained[0]
    assert made.answer_start == (int(trained.argmax()),)
    borders = np.flatnonzero(np.diff(np.concatenate(([0], trained.astype(int), [0])))).reshape(-1, 2)
    return [tokenizer.decode(ids[begin:end]) for begin, end in borders]


# What closes a turn: TRL learns as much of a prompt and completion.
CLOSED = {
    CHATML: "<|im_end|>\n",
    LLAMA3: "<|eot_id|>",
    GEMMA: "<end_of_turn>\n",
    ZEPHYR: "<|im_end|>\n",
    ALTERNATING: "<|im_end|>",
    CHATML_MARKED: "<|im_end|>",
}
NAMES = ["chatml", "llama 3", "gemma", "zephyr", "alternating", "chatml with marks"]


@pytest.mark.parametrize(("template", "closed"), CLOSED.items(), ids=NAMES)
def test_all_turns_of_the_assistant_are_learnt_with_what_closes_them(
    make_tokenizer: Make, template: str, closed: str
) -> None:
    tokenizer = make_tokenizer(template=template)
    made = encoded(tokenizer, {"messages": TALK})
    whole = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert made.ids[0].tolist() == whole
    header = "[assistant] " if template == ALTERNATING else ""  # without a generation prompt the answer begins with it
    assert learnt(tokenizer, made) == [header + turn["content"] + closed for turn in TALK[1::2]]


@pytest.mark.parametrize("template", CLOSED, ids=NAMES)
def test_the_last_turn_alone(make_tokenizer: Make, template: str) -> None:
    tokenizer = make_tokenizer(template=template)
    every, last = (encoded(tokenizer, {"messages": TALK}, turns) for turns in ("all", "last"))
    assert learnt(tokenizer, last) == learnt(tokenizer, every)[-1:] and last.ids[0].tolist() == every.ids[0].tolist()


def test_marks_are_those_of_transformers(make_tokenizer: Make) -> None:
    for template in (CHATML_MARKED, QWEN3_MARKED):
        tokenizer = make_tokenizer(template=template)
        theirs = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
        made = encoded(tokenizer, {"messages": TALK})
        assert made.trained is not None and made.trained.tolist() == [bool(one) for one in theirs["assistant_masks"]]


def test_marks_in_a_comment_are_none(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template="{#- {% generation %}\nof old -#}" + CHATML)
    assert len(learnt(tokenizer, encoded(tokenizer, {"messages": TALK}))) == 3


def test_marks_of_a_prompt_are_not_learnt(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template=CHATML_MARKED)
    made = encoded(tokenizer, {"prompt": TALK[:3], "completion": TALK[3:]})
    assert learnt(tokenizer, made) == [f"the cat\n\nsat{EOS}", f"Paris{EOS}"]


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_the_last_turn_is_asked_for(
    make_tokenizer: Make,
) -> None:
    tokenizer = make_tokenizer(template=QWEN3)
    tokenizer.name_or_path = "models/thinking"
    with pytest.raises(UserError, match=r"models/thinking rewrites earlier turns .*sft\.turns last"):
        encoded(tokenizer, {"messages": TALK})
    made = encoded(tokenizer, {"messages": [*TALK[:-1], say("Paris", reasoning_content="hm")]}, "last")
    assert learnt(tokenizer, made) == [f"hm\n</think>\n\nParis{EOS}\n"]
    alone = encoded(tokenizer, {"messages": TALK[:2]})  # one answer is the last one
    assert learnt(tokenizer, alone) == [f"\n</think>\n\nParis{EOS}\n"]


def test_marks_tell_of_earlier_turns_that_are_rewritten(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template=QWEN3_MARKED)
    made = encoded(tokenizer, {"messages": [*TALK[:3], say("hello", reasoning_content="hm")]})
    assert learnt(tokenizer, made) == [f"Paris{EOS}", f"<think>\nhm\n</think>\n\nhello{EOS}"]


def test_a_template_that_rewrites_what_is_asked_makes_a_bad_row(make_tokenizer: Make) -> None:
    template = "{% if messages[-1].role == 'user' %}NOW{% endif %}" + CHATML.partition("{% if add")[0]
    row = parse_row({"messages": TALK}, kind=demonstrations("last"))
    (made,) = encode_demonstrations(make_tokenizer(template=template), [row], "last")
    assert isinstance(made, BadRow) and "rewrites the turns before the last answer" in made.detail


def test_a_header_that_answers_do_not_have_is_not_learnt_and_noted(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template=DEEPSEEK)
    made = encoded(tokenizer, {"messages": TALK[:4]})
    assert learnt(tokenizer, made) == ["Paris<|end|>", "the cat\n\nsat<|end|>"]
    assert OTHER_HEADER in {note.kind for note in made.notes}


def test_texts_are_learnt_from_the_prompt_s_end_on_with_an_eos(make_tokenizer: Make) -> None:
    for habits in ({}, {"add_bos": True}, {"add_eos": True}):
        tokenizer = make_tokenizer(**habits)
        for completion in (" Paris", *([] if habits.get("add_eos") else [f" Paris{EOS}"])):
            made = encoded(tokenizer, {"prompt": "hello world", "completion": completion})
            assert learnt(tokenizer, made) == [f" Paris{EOS}"]
        merged = encoded(tokenizer, {"prompt": "hello wor", "completion": "ld"})  # tokens merge where they meet
        whole = tokenizer.decode(merged.ids[0], skip_special_tokens=True)
        assert whole == "hello world" and learnt(tokenizer, merged)[0].endswith(f"world{EOS}")


def test_a_text_is_learnt_whole_but_for_its_first_token(make_tokenizer: Make) -> None:
    made = encoded(make_tokenizer(), {"text": "hello world, how"})
    assert made.trained is not None and made.trained.tolist() == [False] + [True] * (len(made.ids[0]) - 1)
    assert made.ids[0][-1] == 1
    with_bos = make_tokenizer(add_bos=True)
    assert learnt(with_bos, encoded(with_bos, {"text": "hello world, how"})) == [f"hello world, how{EOS}"]


def test_spaces_at_a_turn_s_borders_are_the_turn_s(make_tokenizer: Make) -> None:
    """Byte-level tokenizers may leave spaces out of what they say of a token's place."""
    tokenizer = make_tokenizer(template="{% for m in messages %}{{ '[' + m.role + ']' + m.content }}{% endfor %}"
                               "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    made = encoded(tokenizer, {"messages": [ask("a  "), say("  hello  "), ask("  b"), say(" 🙂")]})
    assert learnt(tokenizer, made) == ["  hello  ", " 🙂"]


def test_a_prompt_beside_messages_is_not_learnt(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    made = encoded(tokenizer, {"messages": TALK, "prompt": TALK[:3]})
    assert learnt(tokenizer, made) == [f"the cat\n\nsat{EOS}\n", f"Paris{EOS}\n"]
    assert TWICE in {note.kind for note in made.notes}
    as_text = encoded(tokenizer, {"messages": TALK, "prompt": "say Paris"})
    assert len(learnt(tokenizer, as_text)) == 3


def test_what_follows_the_last_answer_is_left_out(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    made = encoded(tokenizer, {"messages": TALK[:3]})
    assert tokenizer.decode(made.ids[0]).endswith(f"Paris{EOS}\n") and UNANSWERED in {n.kind for n in made.notes}


def test_an_answer_at_the_beginning_is_not_learnt(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    made = encoded(tokenizer, {"messages": [say("hello"), *TALK[:2]]})
    assert learnt(tokenizer, made) == [f"Paris{EOS}\n"] and ANSWER_FIRST in {note.kind for note in made.notes}


PAIR = {"prompt": [ask("a")], "chosen": "hello", "rejected": "the dog"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, ["hello<|im_end|>\n"]),
        ({"prompt": [ask("a")], "responses": ["hello"], "edges": [], "rewards": [2.0]}, ["hello<|im_end|>\n"]),
        ({"prompt": [ask("a")], "responses": ["the dog", "hello"], "scores": [0, 1]}, ["hello<|im_end|>\n"]),
        ({"chosen": [*TALK[:3], say("hello")], "rejected": [*TALK[:3], say("the dog")]}, ["Paris", "hello"]),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, [" b<|im_end|>"]),
        ({"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 9]}, None),
        ({"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}, None),
    ],
)
def test_of_preferences_the_best_answer_is_learnt(
    tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], expected: list[str] | None
) -> None:
    made = encoded(tokenizer, row)
    if expected is None:
        assert made.ids[0].tolist() == [5, 6, 7, 8] and made.trained is not None
        assert made.trained.tolist() == [False, False, True, True]
    else:
        found = learnt(tokenizer, made)
        assert len(found) == len(expected) and all(map(str.startswith, found, expected))


def test_of_several_best_answers_the_first_is_taken_and_said_so(tokenizer: PreTrainedTokenizerFast) -> None:
    made = encoded(tokenizer, {"prompt": [ask("a")], "chosen": ["hello", "hi"], "rejected": ["no"]})
    assert learnt(tokenizer, made) == ["hello<|im_end|>\n"] and SEVERAL_BEST in {note.kind for note in made.notes}


def test_columns_of_other_names(tokenizer: PreTrainedTokenizerFast) -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "hello"}]}
    made = encoded(tokenizer, sharegpt, columns=read_columns("conversations=messages"))
    assert learnt(tokenizer, made) == ["hello<|im_end|>\n"]
    alpaca = {"instruction": "say", "input": "it", "output": "hello", "text": "### say it hello"}
    columns = read_columns(["alpaca", "output=completion"])
    made = encoded(tokenizer, alpaca, columns=columns)
    assert learnt(tokenizer, made) == ["hello<|im_end|>\n"] and "say\n\nit" in tokenizer.decode(made.ids[0])
    assert dict(parse_row(alpaca, columns, demonstrations()).columns)["text"] == "ignore"


def test_preferences_have_no_columns_of_demonstrations() -> None:
    row = {"conversations": TALK, "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match=r"f:1: data\.columns .* conversations=messages: only demonstrations"):
        read_row("f:1", row, read_columns("conversations=messages"), PAIRS)


def test_a_further_column_that_may_be_the_prompt_ends_the_reading() -> None:
    with pytest.raises(UserError, match="`context`: looks like a prompt"):
        read_row("f:1", {"messages": TALK, "context": "something else that counts"}, AS_NAMED, demonstrations())


BAD_ROWS = [
    ({}, "missing column", "no `messages`"),
    ({"prompt": "a"}, "missing column", "no `messages`"),
    ({"completion": "a"}, "missing column", "no `prompt` beside `completion`"),
    ({"text": 3}, "wrong type", "`text` is not text but int"),
    ({"text": " "}, "empty", "a response has no text"),
    ({"messages": "hello"}, "wrong type", "`messages` is not a list of messages but str"),
    ({"messages": []}, "empty", "`messages` is an empty list"),
    ({"messages": [ask("a")]}, "wrong roles", "no turn of the messages is an answer"),
    ({"messages": [say("a")]}, "wrong roles", "no turn before the answer"),
    ({"messages": [ask("a"), say(" ")]}, "empty", "the last assistant turn has no text"),
    ({"messages": [ask("a"), {"role": "assistant", "content": 3}]}, "wrong type", "content is not text"),
    ({"prompt": "a", "completion": ["b"]}, "wrong type", "the responses are not"),
    ({"prompt": "a", "responses": ["b", "c"], "edges": []}, "no edge", "2 answers, and none is the one to learn"),
    ({"chosen": "a b", "rejected": "a c"}, "missing column", "nothing in the answers says where it ends"),
]


@pytest.mark.parametrize(("row", "cause", "detail"), BAD_ROWS, ids=[str(row)[:40] for row, *_ in BAD_ROWS])
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], cause: str, detail: str) -> None:
    with pytest.raises(BadRow) as raised:
        parse_row(row, kind=demonstrations())
    assert raised.value.cause == cause and detail in raised.value.detail
