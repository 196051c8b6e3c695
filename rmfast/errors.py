"""Errors that end a command with one line instead of a traceback, and how text of any origin becomes such a line."""

import re
from typing import Any

WORD = 300  # characters that are kept of a word: of a longer one, which is no word, its beginning says enough
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])")
_LONG = re.compile(rf"(\S{{{WORD}}})\S+")
_SENTENCE = re.compile(r"(?<=[.!?]) +(?=[A-Z(])")
_UNSAFE = re.compile(r"pickle|weights_only|trust_remote_code", re.IGNORECASE)


def plain(text: str) -> str:
    """A text on one line that any terminal can print: what does not show is escaped, what is too long is cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _LONG.sub(r"\1...", text) if len(text) > WORD else text


class OneLine(Exception):
    """An error whose message is one line, whatever it quotes."""

    def __str__(self) -> str:
        return plain(super().__str__())


class UserError(OneLine, ValueError):
    """Bad input: its message is one line that says what is wrong, where, and how to mend it.

    The commands print it without a traceback and end with exit code 2.
    """


class Interrupted(OneLine):
    """A run that was asked to end early and did, with all that it had reached saved: one line that says so.

    The commands print it and end with exit code 0.
    """


class RunError(OneLine, RuntimeError):
    """A run that cannot go on, as after a loss that is not finite: one line that says when, where and what to try.

    The commands print it without a traceback and end with exit code 1.
    """


class LimitReached(RunError):
    """A run that passed a limit of its config; the step before is saved."""


class PeerError(RunError):
    """A rank that cannot go on because another one cannot; that one's line says why."""


class KeyClash(ValueError):
    """Keys of a config that do not fit together, or one whose value is out of its range.

    Attributes:
        keys: dotted names of the keys that clash; the error names the file that sets the first of them.
    """

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


def shown(value: Any) -> str:
    """A value as a detail quotes it: its beginning, on one line that any terminal can print."""
    try:
        return repr(value if len(text := value if isinstance(value, str) else repr(value)) <= 80 else f"{text[:80]}...")
    except ValueError:  # an integer of thousands of digits
        return f"a huge {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """The first line of another library's message; its type's name where it has none.

    Terminal escapes are left out, and sentences that advise to run what a file holds (pickles, a folder's code).
    """
    line = (_ESCAPE.sub("", str(error)).strip().splitlines() or [type(error).__name__])[0].rstrip()
    kept = [sentence for sentence in _SENTENCE.split(line) if not _UNSAFE.search(sentence)]
    return plain(" ".join(kept)) if kept else f"{type(error).__name__} (it would run what the file holds)"
