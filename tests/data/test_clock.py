"""Templates that read the clock say one date on any day, and are otherwise the text that transformers makes."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from rmfast.data.clock import DEFAULT_DATE, fix_date, fixed_date, iso_date
from rmfast.data.example import Example
from rmfast.data.tokenise import Encoded, encode
from rmfast.data.tokenizer import fingerprint, load_tokenizer
from rmfast.errors import UserError

from .templates import CHATML, DATED, DATED_IN_A_MACRO

MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


def today(monkeypatch: pytest.MonkeyPatch, year: int, month: int, day: int) -> None:
    """Stop transformers' clock."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(year, month, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    chat_template_utils._compile_jinja_template.cache_clear()


@pytest.fixture(autouse=True)
def _no_stopped_clock_is_kept() -> Iterator[None]:
    yield
    chat_template_utils._compile_jinja_template.cache_clear()


def written(template: str, **arguments: object) -> str:
    texts, _ = chat_template_utils.render_jinja_template([MESSAGES], chat_template=template, **arguments)
    return texts[0]


@pytest.mark.parametrize(
    "template",
    [
        DATED,
        DATED_IN_A_MACRO,
        '{{ strftime_now("%A %-d %B %Y, %d.%m.%y, %j, week %V of %G, %U, %W, %H:%M:%S, %I %p, %c, %x, %X, %F") }}',
        '{{ strftime_now(format="%%d is not %d, 100%% %%%d %%") }}',
        "\n\n  {% if true %}\n  {{ strftime_now('%Y') }}{% endif %}\n",
        "  {%- if strftime_now is defined %}yes{% endif %}\r\n x",
        "\t{# a comment #}\n {{ strftime_now(written) }}",
        "{% set clock = strftime_now %}{{ clock(written) }}",
        "{% for m in messages %}{% generation %}{{ strftime_now('%e %B') + m.content }}{% endgeneration %}{% endfor %}",
    ],
)
def test_a_template_says_what_it_says_with_a_stopped_clock(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    today(monkeypatch, 2025, 1, 5)
    expected = written(template, written="%d %b %Y")
    assert expected
    today(monkeypatch, 2031, 12, 31)
    assert written(template, written="%d %b %Y") != expected or "2025" not in expected
    assert written(fix_date(template, "2025-01-05"), written="%d %b %Y") == expected


def test_fixing_twice_is_fixing_once_and_the_last_date_holds() -> None:
    once = fix_date(DATED)
    assert fix_date(once) == once == fix_date(DATED, DEFAULT_DATE)
    other = fix_date(once, "2020-02-29")
    assert other == fix_date(DATED, "2020-02-29") != once
    assert (fixed_date(once), fixed_date(other), fixed_date(fix_date(other))) == (
        "2024-07-26",
        "2020-02-29",
        "2020-02-29",
    )
    assert "Today: 29 Feb 2020" in written(other)


def test_templates_without_a_clock_and_none_stay_as_they_are() -> None:
    assert fix_date(CHATML) == CHATML and fix_date(None) is None
    assert fixed_date(CHATML) is fixed_date(None) is fixed_date({"default": CHATML}) is None


def test_of_several_templates_those_with_a_clock_are_given_the_date() -> None:
    made = fix_date({"default": CHATML, "tool_use": DATED}, "2025-01-05")
    assert made == {"default": CHATML, "tool_use": fix_date(DATED, "2025-01-05")} and fixed_date(made) == "2025-01-05"


@pytest.mark.parametrize("wrong", ["tomorrow", "2024-13-01", "26.07.2024", "", None, 20240726])
def test_what_is_no_date_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="is a date such as 2024-07-26, got"):
        iso_date(wrong)


def test_tokens_and_cache_key_are_the_same_on_any_day_and_differ_by_date(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer(template=DATED).save_pretrained(tmp_path / "model")
    example = Example(MESSAGES[:1], ("Me.", "You."))

    def tokens(date: str | None = None) -> tuple[str, list[list[int]]]:
        tokenizer = load_tokenizer(tmp_path / "model", template_date=date)
        (encoded,) = encode(tokenizer, [example])
        assert isinstance(encoded, Encoded)
        return fingerprint(tokenizer), [ids.tolist() for ids in encoded.ids]

    today(monkeypatch, 2025, 1, 5)
    before = tokens()
    today(monkeypatch, 2031, 12, 31)
    assert tokens() == before == tokens("2024-07-26")
    other = tokens("2024-07-27")
    assert other[0] != before[0] and other[1] != before[1]
    with pytest.raises(UserError, match=r"data.template_date\) is a date such as 2024-07-26, got 'never'"):
        tokens("never")


@pytest.mark.parametrize("named", [False, True])
def test_a_saved_tokenizer_keeps_its_date_in_plain_transformers_and_here(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: bool,
) -> None:
    make_tokenizer(template={"default": DATED, "tool_use": CHATML} if named else DATED).save_pretrained(tmp_path / "a")
    load_tokenizer(tmp_path / "a", template_date="2025-01-05").save_pretrained(tmp_path / "b")
    today(monkeypatch, 2031, 12, 31)
    plain = AutoTokenizer.from_pretrained(tmp_path / "b").apply_chat_template(MESSAGES, tokenize=False)
    assert plain == written(DATED.replace('strftime_now("%d %b %Y")', '"05 Jan 2025"'))
    again = load_tokenizer(tmp_path / "b")
    assert fixed_date(again.chat_template) == "2025-01-05"
    assert again.apply_chat_template(MESSAGES, tokenize=False) == plain
    other = load_tokenizer(tmp_path / "b", template_date="2024-07-26")
    assert "Today: 26 Jul 2024" in other.apply_chat_template(MESSAGES, tokenize=False)


def test_further_forms_of_dates(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    """glibc's; `%s` is in UTC, so that it is the same in every time zone."""
    template = fix_date('{{ strftime_now("[%k] [%l] [%P] [%s]") }}', "2025-01-05")
    text = make_tokenizer(template=template).apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text == "[ 0] [12] [am] [1736035200]"
