"""Options out of range are refused by name, texts of samples end where they should, places of a pool are used once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rmfast.errors import UserError
from rmfast.rollout.draft import Request
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.pool import Extents
from rmfast.rollout.stops import StopStrings, answer_text, cut
from tests.runs import DECODER


@pytest.mark.parametrize(
    "given_, says",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, got 2.5"),
        ({"temperature": -0.1}, "temperature must be 0 (greedy) or at least 1e-05, got -0.1"),
        ({"temperature": 1e-6}, "temperature must be 0 (greedy) or at least 1e-05, got 1e-06"),
        ({"temperature": float("nan")}, "temperature must be 0 (greedy) or at least 1e-05, got nan"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1 (off), got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1 (off), got 1.5"),
        ({"top_k": -1}, "top_k must be 0 (off) or positive, got -1"),
        ({"top_k": 2**63}, f"top_k must fit into 64 bits, got {2**63}"),
        ({"top_k": True}, "top_k must be a number, got True"),
        ({"min_p": 1.1}, "min_p must be within 0 (off) and 1, got 1.1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be positive, 1 for none, got 0"),
        ({"seed": 2**63}, f"seed must fit into 64 bits, got {2**63}"),
        ({"stop": ("a", "")}, "stop must be texts, none of them empty, got ('a', '')"),
        ({"stop": None}, "stop must be texts, none of them empty, got None"),
        ({"stop": ("a", "\udcff")}, "stop must be text that UTF-8 can hold, got ('a', '\\udcff')"),
    ],
)
def test_options_out_of_range_are_refused(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        SampleOptions(**given_)
    assert str(error.value) == says


def test_one_stop_string_is_one() -> None:
    options: dict[str, Any] = {"stop": "END"}
    assert SampleOptions(**options).stop == ("END",)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DECODER)


def test_a_stop_string_ends_a_sample_at_the_token_that_completes_it(tokenizer: PreTrainedTokenizerBase) -> None:
    request = Request(np.array(tokenizer("Say what you think of it: ")["input_ids"]), 0)
    text = " I would not say so, though it is a fine thing. " * 8 + "And\n\nHuman: why?"
    ids = np.array(tokenizer(text)["input_ids"])
    stops = StopStrings(tokenizer, ("\n\nHuman:", "never"))
    ends = [stops.end(request, 0, ids[:count]) for count in range(1, len(ids) + 1)]
    first = ends.index(True) + 1
    assert "\n\nHuman:" in tokenizer.decode(ids[:first]) and "\n\nHuman:" not in tokenizer.decode(ids[: first - 1])
    assert cut(answer_text(tokenizer, request.ids, ids[:first]), ("\n\nHuman:",)) == text.partition("\n\nHuman:")[0]


def test_a_special_token_can_be_a_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = np.array(tokenizer(" Yes.<|im_start|>user")["input_ids"])
    stops = StopStrings(tokenizer, ("<|im_start|>",))
    ends = [stops.end(Request(ids[:1], 0), 0, ids[:count]) for count in range(1, len(ids) + 1)]
    (place,) = np.flatnonzero(ends)
    assert ids[place] == tokenizer.convert_tokens_to_ids("<|im_start|>") and 0 < place < len(ids) - 1


@pytest.mark.parametrize("stop", ["é", "本\n", "ü 日"])
def test_a_stop_string_of_several_bytes_ends_at_the_last_of_them(tokenizer: PreTrainedTokenizerBase, stop: str) -> None:
    """Whose tokens are parts of characters, behind a long prompt as behind none."""
    ids = np.array(tokenizer(f"a text {stop} b")["input_ids"])
    stops = StopStrings(tokenizer, (stop,))
    for prompt in (ids[:1], np.array(tokenizer("日本 and more words " * 20)["input_ids"])):
        ends = [stops.end(Request(prompt, 0), 0, ids[:count]) for count in range(1, len(ids) + 1)]
        first = ends.index(True) + 1
        assert stop in tokenizer.decode(ids[:first]) and stop not in tokenizer.decode(ids[: first - 1])


def test_the_text_is_what_the_tokens_add(tokenizer: PreTrainedTokenizerBase) -> None:
    """Halves of a character too: the prompt's end and the answer's first token may share one."""
    for text, answer in (("Hello", " there"), ("", "Hello"), ("a ", "grün 日本"), ("日", "本")):
        prompt, ids = (np.array(tokenizer(part)["input_ids"], np.int32) for part in (text, answer))
        assert answer_text(tokenizer, prompt, ids) == answer
    assert cut("abcabc", ("c", "ca")) == "ab" and cut("abc", ("x",)) == "abc" and cut("abc", ()) == "abc"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_places_are_given_once_and_come_together_again(steps: list[tuple[bool, int]]) -> None:
    extents, held = Extents(30), []
    used: set[int] = set()
    for takes, size in steps:
        if takes or not held:
            begin = extents.take(size)
            free = [i for i in range(30) if i not in used]
            fits = any(set(range(i, i + size)) <= set(free) for i in range(31 - size))
            assert (begin is not None) == fits
            if begin is not None:
                places = set(range(begin, begin + size))
                assert not places & used and max(places, default=0) < 30
                used |= places
                held.append((begin, size))
        else:
            begin, size = held.pop(size % len(held))
            extents.give(begin, size)
            used -= set(range(begin, begin + size))
    for begin, size in held:
        extents.give(begin, size)
    assert extents.free == [(0, 30)]
