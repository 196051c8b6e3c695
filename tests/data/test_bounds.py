"""Templates that would run on or grow without end, at limits that are small enough to be reached in no time."""

import threading
from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data import bounds
from rmfast.data.example import BadRow
from rmfast.data.template import render
from rmfast.errors import UserError

Make = Callable[..., PreTrainedTokenizerFast]
TURNS = [{"role": "user", "content": "x"}]
DOUBLED = "{% set ns = namespace(a=START) %}{% for i in range(40) %}{% set ns.a = SUM %}{% endfor %}"


ENDLESS = (
    "{% set all = range(9999) %}{% for i in all %}{% for j in all %}{% endfor %}{% endfor %}",
    "{% set all = range(9999) %}{% for i in all if all | sum < 0 %}{% endfor %}",
    "{% for i in range(9999) recursive %}{% if loop.depth < 9 %}{{ loop(range(9999)) }}{% endif %}{% endfor %}",
    "{{ ([range(9999)] * 9999) | map('sum') | list | length }}",
    "{{ ([range(9999)] * 9999) | select('eq', 1) | list | length }}" * 99,
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LARGEST", 10_000)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 20000 }}",
        "{{ 20000 * [1] }}",
        "{{ 'a'.ljust(20000) }}",
        "{{ 'a' | center(width=20000) }}",
        "{{ '%20000000d' % 1 }}",
        "{{ '%*d' % (20000, 1) }}",
        "{{ '{:>20000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 20000) }}",
        "{{ ('a' * 200) | replace('a', 'b' * 200) }}",
        "{{ ('a' * 200).replace('a', 'b' * 200) }}",
        "{{ ('a' * 200).join(['b'] * 200) }}",
        "{{ (['b'] * 200) | join('a' * 200) }}",
        "{{ messages | tojson(indent=20000) }}",
        DOUBLED.replace("START", "'ab'").replace("SUM", "ns.a ~ ns.a"),
        DOUBLED.replace("START", "'ab'").replace("SUM", "ns.a + ns.a"),
        DOUBLED.replace("START", "[1]").replace("SUM", "ns.a + ns.a"),
        "{% macro m(x) %}{{ m(x + x) }}{% endmacro %}{{ m('a') }}",
        "{% with a = 'a' * 9999 %}{% with b = a + a %}{{ b | length }}{% endwith %}{% endwith %}",
        "{% for i in range(9999) %}abc{% endfor %}",
    ],
)
def test_what_grows_too_large_is_a_bad_row(make_tokenizer: Make, template: str) -> None:
    with pytest.raises(BadRow, match="template error: OverflowError: more than 10,000 characters or items"):
        render(make_tokenizer(template=template), TURNS, is_prompt=True)


def test_so_is_a_number_of_too_many_digits(make_tokenizer: Make) -> None:
    for template in ("{{ 10 ** 9999 }}", "{{ (2 ** 9999) * (2 ** 9999) }}"):
        with pytest.raises(BadRow, match="OverflowError: more than 10,000 bits of a number"):
            render(make_tokenizer(template=template), TURNS, is_prompt=True)


def test_what_runs_on_ends_in_a_line_that_names_the_template(
    make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.05)
    for template in ENDLESS:
        with pytest.raises(UserError, match=r"the chat template \(data.chat_template\) runs for more than 0.05 s over"):
            render(make_tokenizer(template=template), TURNS, is_prompt=True)
    assert render(make_tokenizer(template="{% for i in range(3) %}{{ i }}{% endfor %}"), TURNS, is_prompt=True) == "012"


def test_so_it_does_in_another_thread_and_no_other_ends_of_it(
    make_tokenizer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.05)
    tokenizer, said = make_tokenizer(template=ENDLESS[0]), list[str]()

    def work() -> None:
        with pytest.raises(UserError) as error:
            render(tokenizer, TURNS, is_prompt=True)
        said.append(str(error.value))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        assert render(make_tokenizer(), TURNS, is_prompt=False)
    assert len(said) == 1 and "runs for more than 0.05 s" in said[0]


def test_what_is_small_is_as_ever(make_tokenizer: Make) -> None:
    template = (
        "{{ 'x' ~ 1 ~ 'y' }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ 7 % 3 }} {{ '%s-%s' % ('a', 'b') }} {{ 2 ** 5 }} "
        "{{ 2 * 3 }} {{ ['a', 'b'] | join(', ') }} {{ 'ab' * 2 }} {{ messages | tojson }} "
        "{{ '{} {:>3}'.format(1, 'b') }} {{ 'a-b'.replace('-', '+') }} {{ 'hi' | center(4) }} "
        "{% set x = nothing %}{{ x is undefined }}"
    )
    told = 'x1y ab [1, 2] 1 a-b 32 6 a, b abab [{"role": "user", "content": "x"}] 1   b a+b  hi  True'
    assert render(make_tokenizer(template=template), TURNS, is_prompt=True) == told
