"""Errors are one line that any terminal can print, whatever they quote, and how a command ends after them."""

import pickle

import pytest

from rmfast.errors import Interrupted, RunError, UserError, first_line, plain


def test_what_does_not_show_is_escaped_and_what_is_too_long_is_cut() -> None:
    assert plain("a\nb\0\x1b[31m\ud83d \u202e é") == r"a\nb\x00\x1b[31m\ud83d \u202e é"
    assert plain(f"no {'x' * 5000} here") == f"no {'x' * 300}... here"


@pytest.mark.parametrize("kind", [UserError, RunError, Interrupted])
def test_an_error_is_one_line_in_another_process_too(kind: type[Exception]) -> None:
    assert str(pickle.loads(pickle.dumps(kind("a\nb")))) == r"a\nb"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\n first \nsecond", "first"),
        ("", "ValueError"),
        ("\x1b[1m\x1b[31mBad\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x07", "Bad link"),
        ("No array. If you trust the file, use allow_pickle=True. So be it.", "No array. So be it."),
        ("Set trust_remote_code=True to run it", "ValueError (it would run what the file holds)"),
    ],
)
def test_of_another_library_the_first_line_counts_without_escapes_and_advice(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
