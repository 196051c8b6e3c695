"""Whatever a template or a row does, the row is a bad one by its number, and the others are used."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from rmfast.data.clock import fix_date
from rmfast.data.example import BadRow, Example
from rmfast.data.probe import PROBES, readable, taken_for_granted
from rmfast.data.template import render
from rmfast.data.tokenise import Encoded, encode
from rmfast.errors import UserError

from .templates import CHATML, DATED, NEEDS_A_SYSTEM_TURN, NEEDS_MORE, NEEDS_REASONING, NEEDS_TOOLS

Make = Callable[..., PreTrainedTokenizerFast]
ASK = [{"role": "user", "content": "Hm?"}]
GOOD = Example(ASK, ("a", "b"))


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"in": value}
    return value


ODD = "{% if messages[0].content == 'odd' %}{{ EXPRESSION }}{% endif %}"


@pytest.mark.parametrize(
    ("expression", "cause", "detail"),
    [
        ("raise_exception('not this one')", "wrong roles", "not this one"),
        ("tools | length", "template error", "TypeError: object of type 'NoneType' has no len()"),
        ("messages[0].content.nothing()", "template error", "UndefinedError: 'str object' has no attribute 'nothing'"),
        ("1 // 0", "template error", "ZeroDivisionError: integer division or modulo by zero"),
        ("[1].index(2)", "template error", "ValueError: 2 is not in list"),
        ("''.join([1])", "template error", "TypeError: sequence item 0: expected str instance, int found"),
        ("{}['a'].b", "template error", "UndefinedError: 'dict object' has no attribute 'a'"),
        ("'a'.__class__.__mro__", "template error", "SecurityError: access to attribute '__class__'"),
        ("namespace(_a=1)._a.b", "template error", "SecurityError"),  # when stored or, in older transformers, when read
        ("range(10 ** 9)", "template error", "OverflowError: Range too big"),
        ("'a' * 10 ** 20", "template error", "OverflowError"),
        ("'%d' % 'x'", "template error", "TypeError: %d format"),
        ("messages.append(1)", "template error", "SecurityError"),
        ("'a'.encode('nowhere')", "template error", "LookupError: unknown encoding"),
        ("self.nothing()", "template error", "UndefinedError"),
    ],
)
def test_any_error_of_a_template_is_one_bad_row(make_tokenizer: Make, expression: str, cause: str, detail: str) -> None:
    tokenizer = make_tokenizer(template=ODD.replace("EXPRESSION", expression) + CHATML)
    odd = Example([{"role": "user", "content": "odd"}], ("a", "b"))
    first, bad, last = encode(tokenizer, [GOOD, odd, GOOD])
    assert isinstance(first, Encoded) and isinstance(last, Encoded)
    assert isinstance(bad, BadRow) and (bad.cause, bad.detail[: len(detail)]) == (cause, detail)


def test_a_template_without_end_is_one_bad_row(make_tokenizer: Make) -> None:
    endless = "{% macro again() %}{{ again() }}{% endmacro %}"
    tokenizer = make_tokenizer(template=endless + ODD.replace("EXPRESSION", "again()") + CHATML)
    bad, good = encode(tokenizer, [Example([{"role": "user", "content": "odd"}], ("a", "b")), GOOD])
    assert isinstance(good, Encoded)
    assert isinstance(bad, BadRow) and str(bad).startswith("template error: RecursionError")


@pytest.mark.parametrize("fixed", [False, True])
def test_a_template_that_is_no_jinja_is_the_users_to_mend_by_its_line(make_tokenizer: Make, fixed: bool) -> None:
    template = ("{# strftime_now #}" if fixed else "") + "\n\n{% if %}"
    with pytest.raises(UserError, match=r"data.chat_template\) is not valid, line 3: Expected an expression"):
        encode(make_tokenizer(template=fix_date(template)), [GOOD])


@pytest.mark.parametrize(
    "name",
    ["chat_template", "tokenize", "add_generation_prompt", "conversation", "messages", "tools", "return_dict"]
    + ["return_tensors", "continue_final_message", "tokenizer_kwargs", "max_length", "self", "conversations"]
    + ["strftime_now", "raise_exception", "namespace", "return_assistant_tokens_mask", "sanitize_control_tokens"]
    + ["bos_token", "eos_token"],
)
def test_a_row_cannot_replace_the_template_or_how_it_is_called(make_tokenizer: Make, name: str) -> None:
    tokenizer = make_tokenizer(template=fix_date(DATED))
    for value in ("{{ 'x' }}", True, None):
        bad, good = encode(tokenizer, [Example(ASK, ("a", "b"), template_kwargs={"mood": 1, name: value}), GOOD])
        assert isinstance(good, Encoded)
        assert isinstance(bad, BadRow) and bad.cause == "reserved argument" and repr(name) in bad.detail


def test_arguments_of_a_template_reach_it_documents_too(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(template="{{ mood }}{% for d in documents %}{{ d.text }}{% endfor %}" + CHATML)
    arguments = {"mood": "sunny ", "documents": [{"text": "of rain "}]}
    text = render(tokenizer, ASK, is_prompt=True, arguments=arguments)
    assert text == "sunny of rain <|im_start|>user\nHm?<|im_end|>\n<|im_start|>assistant\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "critic"]) | VALUES, "content": VALUES},
    optional={"tool_calls": VALUES, "reasoning_content": VALUES, "name": VALUES},
)
TURNS = st.lists(MESSAGE, min_size=1, max_size=3)
RICH = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}"
    "{{ m.content }}{{ m.reasoning_content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.builds(
            Example,
            st.none() | TURNS,
            st.lists(TURNS, min_size=1, max_size=3).map(tuple),
            tools=st.none() | st.lists(VALUES, max_size=2),
            template_kwargs=st.dictionaries(st.text(max_size=6), VALUES, max_size=2),
        ),
        st.builds(Example, st.none(), st.lists(st.lists(st.integers(), max_size=3), min_size=1, max_size=3).map(tuple)),
        st.builds(Example, st.none() | st.text(), st.lists(st.text(), min_size=1, max_size=3).map(tuple)),
    )
)
def test_nothing_that_a_row_holds_ends_a_command(make_tokenizer: Make, example: Example) -> None:
    odd, good = encode(make_tokenizer(template=RICH), [example, GOOD])
    assert isinstance(odd, Encoded | BadRow) and isinstance(good, Encoded)


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": "x", "more": deep(100_000)},
        {"role": "user", "content": 10**5000},
        {"role": "user", "content": Decimal("1.5"), "day": date(2024, 7, 26)},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": "x", "tool_calls": [{"function": deep(50_000)}]},
    ],
    ids=["deep", "huge", "objects", "role", "calls"],
)
def test_odd_turns_are_read_or_bad(make_tokenizer: Make, turn: dict[str, Any]) -> None:
    odd, good = encode(make_tokenizer(template=RICH), [Example([turn], ("a", "b")), GOOD])
    assert isinstance(odd, Encoded | BadRow) and isinstance(good, Encoded)


@pytest.mark.parametrize("number", [319, 2**31, 2**63, 2**80, -1])
def test_ids_that_no_tokenizer_has_are_a_bad_row(make_tokenizer: Make, number: int) -> None:
    tokenizer = make_tokenizer()
    bad, good = encode(tokenizer, [Example(None, ([1, number], [1, 2])), Example(None, ([1, 318], [1, 2]))])
    assert len(tokenizer) == 319 and isinstance(good, Encoded) and good.ids[0].tolist() == [1, 318]
    assert isinstance(bad, BadRow) and bad.cause == "wrong type" and "vocabulary of 319" in bad.detail


@pytest.mark.parametrize(
    ("template", "what", "detail"),
    [
        (NEEDS_TOOLS, "tools", "TypeError: object of type 'NoneType' has no len()"),
        (NEEDS_A_SYSTEM_TURN, "a system turn", "no system"),
        (NEEDS_REASONING, "reasoning", "UndefinedError: 'dict object' has no attribute 'reasoning_content'"),
        (
            NEEDS_MORE,
            "something that rmfast's built-in conversations do not have",
            "UndefinedError: 'topic' is undefined",
        ),
    ],
)
def test_what_a_template_takes_for_granted_is_one_line(
    make_tokenizer: Make, template: str, what: str, detail: str
) -> None:
    tokenizer = make_tokenizer(template=template)
    assert taken_for_granted(tokenizer) == f"the chat template takes {what} for granted: {detail}"
    taken = readable(tokenizer)
    assert bool(taken) == (what in PROBES)


def test_a_plain_template_takes_nothing_for_granted(make_tokenizer: Make) -> None:
    assert taken_for_granted(make_tokenizer()) is None and len(readable(make_tokenizer())) == 1 + len(PROBES)
    assert taken_for_granted(make_tokenizer(template=None)) is None and readable(make_tokenizer(template=None)) == []
