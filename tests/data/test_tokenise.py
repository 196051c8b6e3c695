"""Token ids equal to what TRL and transformers make, and what encode says of prefixes, prompts and bos."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rmfast.data.example import BadRow, Example
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.rows import parse_row
from rmfast.data.tokenise import Encoded, common_prefix, encode
from rmfast.errors import UserError

from .conftest import ALTERNATING, CHATML

Make = Callable[..., PreTrainedTokenizerFast]
HABITS = [{}, {"add_bos": True}, {"pad_is_eos": True}, {"add_bos": True, "pad_is_eos": True}]
STRINGS = [
    {"prompt": "The capital of Fra", "chosen": "nce is Paris.", "rejected": "nce is London"},
    {"prompt": "Hello wor", "chosen": "ld<|im_end|>", "rejected": "ds"},
    {"prompt": "", "chosen": "the cat", "rejected": "the cat sat"},
    {"prompt": "naïve ", "chosen": "日本語のテキスト", "rejected": "🙂\u2028\n\t ok "},
]


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def say(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def one(tokenizer: PreTrainedTokenizerFast, row: dict, **options: bool) -> Encoded:
    (encoded,) = encode(tokenizer, [parse_row(row, **options)])
    assert isinstance(encoded, Encoded), encoded
    return encoded


def trl_ids(tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> list[list[list[int]]]:
    """[[chosen ids, rejected ids], ...] by TRL's own preparation of a data set."""
    trainer = pytest.importorskip("trl").RewardTrainer
    datasets = pytest.importorskip("datasets")
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None)
    done = trainer._prepare_dataset(None, datasets.Dataset.from_list(rows), tokenizer, arguments, "train")
    return [[row["chosen_ids"], row["rejected_ids"]] for row in done]


def our_ids(tokenizer: PreTrainedTokenizerFast, rows: list[dict]) -> list[list[list[int]]]:
    encoded = encode(tokenizer, [parse_row(row) for row in rows])
    return [[ids.tolist() for ids in item.ids] for item in encoded if isinstance(item, Encoded)]


@pytest.mark.parametrize("habits", HABITS, ids=str)
def test_strings_as_trl_tokenises_them(make_tokenizer: Make, habits: dict) -> None:
    tokenizer = make_tokenizer(**habits)
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in STRINGS]
    for rows in (STRINGS, implicit):
        assert our_ids(tokenizer, rows) == trl_ids(tokenizer, rows)


@pytest.mark.parametrize("template", [CHATML, ALTERNATING], ids=["chatml", "alternating"])
@pytest.mark.parametrize("habits", HABITS, ids=str)
def test_messages_as_trl_and_transformers_tokenise_them(make_tokenizer: Make, habits: dict, template: str) -> None:
    tokenizer = make_tokenizer(template=template, **habits)
    turns = ask("Hello") + say("the dog") + ask("And?<|im_end|>")
    explicit = [
        {"prompt": turns, "chosen": say("hello world"), "rejected": say("日本")},
        {"prompt": ask("a"), "chosen": say("b") + ask("c") + say("d"), "rejected": say("b")},
    ]
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in explicit]
    for rows in (explicit, implicit):
        assert our_ids(tokenizer, rows) == trl_ids(tokenizer, rows)
    for row, ids in zip(implicit, our_ids(tokenizer, implicit), strict=True):
        expected = [tokenizer.apply_chat_template(row[side], return_dict=False) for side in ("chosen", "rejected")]
        assert ids == expected
    spoken = [row | {side: row[side][0]["content"] for side in ("chosen", "rejected")} for row in explicit[:1]]
    assert our_ids(tokenizer, spoken) == our_ids(tokenizer, explicit[:1])


def test_tools_and_template_arguments_reach_the_template(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template="{{ tools[0]['name'] if tools else '' }}{{ mood }}" + CHATML)
    row = {"prompt": ask("q"), "chosen": say("a"), "rejected": say("b"), "chat_template_kwargs": {"mood": "sunny "}}
    tools = {"tools": '[{"name": "hammer"}]'}
    assert our_ids(tokenizer, [row | tools]) == trl_ids(tokenizer, [row | tools])
    assert tokenizer.decode(one(tokenizer, row | tools).ids[0]).startswith("hammersunny ")


def test_string_ends_in_exactly_one_eos(make_tokenizer: Make) -> None:
    for tokenizer, rejected in ((make_tokenizer(), "dog<|im_end|>"), (make_tokenizer(add_eos=True), "dog")):
        for ids in one(tokenizer, {"prompt": "the ", "chosen": "cat", "rejected": rejected}).ids:
            assert ids.dtype == np.int32 and ids[-1] == 1 and (ids == 1).sum() == 1


def test_a_second_bos_is_taken_out_and_counted(make_tokenizer: Make) -> None:
    row = {"prompt": "<s>the ", "chosen": "cat", "rejected": "dog"}
    twice, once = one(make_tokenizer(add_bos=True), row), one(make_tokenizer(), row)
    assert (twice.double_bos, once.double_bos) == (2, 0)
    for a, b in zip(twice.ids, once.ids, strict=True):
        assert a.tolist() == b.tolist() and a[0] == 0 and (a == 0).sum() == 1
    assert twice.answer_start == once.answer_start


def test_prefix_and_answer_start_where_tokens_merge_over_the_boundary(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = one(tokenizer, {"prompt": "the c", "chosen": "at sat", "rejected": "at ran"})
    alone = tokenizer("the c")["input_ids"]
    merged = tokenizer("the cat sat")["input_ids"]
    assert merged[: len(alone)] != alone, "the test needs a merge at the prompt's end"
    assert encoded.prefix > encoded.answer_start[0] == common_prefix(np.array(alone), encoded.ids[0])


def test_answer_start_counts_the_assistant_header(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = one(tokenizer, {"prompt": ask("the cat"), "chosen": say("ran"), "rejected": say("the dog")})
    for ids, start, text in zip(encoded.ids, encoded.answer_start, ("ran", "the dog"), strict=True):
        assert tokenizer.decode(ids[start:]) == f"{text}<|im_end|>\n"


@pytest.mark.parametrize("habits", [{}, {"add_eos": True}], ids=str)
def test_the_eos_of_an_empty_response_is_the_response(make_tokenizer: Make, habits: dict[str, bool]) -> None:
    """Whoever appends it."""
    tokenizer = make_tokenizer(**habits)
    (encoded,) = encode(tokenizer, [Example("the cat", ("", " ran"))])
    assert isinstance(encoded, Encoded)
    before = len(tokenizer("the cat", add_special_tokens=False)["input_ids"])
    assert encoded.answer_start == (before, before) and encoded.prefix == before
    assert encoded.ids[0][before:].tolist() == [tokenizer.eos_token_id]


def test_answer_start_without_a_separate_prompt_is_the_common_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in (
        {"chosen": "the cat sat", "rejected": "the cat ran"},
        {"chosen": ask("q") + say("a"), "rejected": ask("q") + say("b")},
        {"chosen_ids": [9, 8, 7, 6], "rejected_ids": [9, 8, 7, 5]},
    ):
        encoded = one(tokenizer, row)
        assert set(encoded.answer_start) == {encoded.prefix}
    ids = one(tokenizer, {"prompt_ids": [9, 8], "chosen_ids": [7, 6], "rejected_ids": [7, 5]})
    assert ids.prefix == 3 and ids.answer_start == (2, 2)  # a prompt of ids is one by itself


def test_prefix_of_one_of_identical_and_of_contained_responses(tokenizer: PreTrainedTokenizerFast) -> None:
    scoring = {"kind": RESPONSES}
    single = one(tokenizer, {"prompt": "the ", "responses": ["cat"]}, **scoring)
    assert single.prefix == len(single.ids[0])
    same = one(tokenizer, {"prompt": "the ", "responses": ["cat", "cat"]}, **scoring)
    assert same.prefix == len(same.ids[0])
    inside = one(tokenizer, {"chosen_ids": [5, 6], "rejected_ids": [5, 6, 7]})
    assert inside.prefix == 2 and inside.answer_start == (2, 2)
    empty = one(tokenizer, {"prompt": "", "responses": ["", "a"]}, **scoring)
    assert empty.ids[0].tolist() == [1] and empty.prefix == 0 and empty.answer_start == (0, 0)


def test_bad_rows_do_not_spoil_their_batch(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template=ALTERNATING)
    rows = [
        {"prompt": "the ", "chosen": "cat", "rejected": "dog"},
        {"prompt": ask("q") + ask("q"), "chosen": say("a"), "rejected": say("b")},
        {"prompt": "\ud800", "chosen": "cat", "rejected": "dog"},
        {"prompt": ask("q"), "chosen": say("a\udfff"), "rejected": say("b")},
        {"chosen_ids": [len(tokenizer)], "rejected_ids": [1]},
        {"chosen_ids": [2**31 - 1], "rejected_ids": [1]},
        {"prompt": ask("q"), "chosen": say("a"), "rejected": say("b")},
    ]
    result = encode(tokenizer, [parse_row(row) for row in rows])
    causes = [item.cause if isinstance(item, BadRow) else None for item in result]
    assert causes == [None, "wrong roles", "not UTF-8", "not UTF-8", "wrong type", "wrong type", None]
    assert isinstance(result[1], BadRow) and result[1].detail == "roles must alternate"


def test_no_or_broken_template_is_the_users_to_mend(make_tokenizer: Make) -> None:
    example = parse_row({"prompt": ask("q"), "chosen": say("a"), "rejected": say("b")})
    for template, message in ((None, "data.chat_template"), ("{% if %}", "data.chat_template.* not valid")):
        with pytest.raises(UserError, match=message):
            encode(make_tokenizer(template=template), [example])


def test_one_call_of_the_tokenizer_per_batch(make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(add_bos=True)  # of one that adds nothing the backend is called
    calls: list[list[str]] = []
    original = type(tokenizer)._encode_plus

    def counted(self: PreTrainedTokenizerFast, text: list[str], *args: object, **kwargs: object) -> object:
        calls.append(text)
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
    encode(tokenizer, [parse_row(row) for row in STRINGS * 5])
    assert len(calls) == 1 and len(calls[0]) == 3 * len(STRINGS), "one call, each text once"


TOKENIZERS: dict[bool, PreTrainedTokenizerFast] = {}


@settings(max_examples=150, deadline=None)
@given(prompt=st.text(max_size=40), answers=st.lists(st.text(max_size=30), min_size=1, max_size=5), bos=st.booleans())
def test_prefix_is_the_longest_common_one(make_tokenizer: Make, prompt: str, answers: list[str], bos: bool) -> None:
    tokenizer = TOKENIZERS.setdefault(bos, make_tokenizer(add_bos=bos))
    (encoded,) = encode(tokenizer, [Example(prompt, tuple(answers))])
    assert isinstance(encoded, Encoded)
    sequences = [ids.tolist() for ids in encoded.ids]
    for text, ids in zip(answers, sequences, strict=True):
        assert tokenizer.decode(ids) == "<s>" * bos + prompt + text + "<|im_end|>"
    assert len({tuple(ids[: encoded.prefix]) for ids in sequences}) == 1
    longer = {tuple(ids[: encoded.prefix + 1]) for ids in sequences}
    assert len(longer) > 1 or min(map(len, sequences)) == encoded.prefix
    assert all(0 <= start <= len(ids) for start, ids in zip(encoded.answer_start, sequences, strict=True))
