"""Errors that end a command with one line instead of a traceback."""


class UserError(ValueError):
    """Bad input: its message is one line that says what is wrong, where, and how to mend it.

    The commands print it without a traceback and end with exit code 2.
    """


class Interrupted(Exception):
    """A run that was asked to end early and did, with all that it had reached saved: one line that says so.

    The commands print it and end with exit code 0.
    """


class RunError(RuntimeError):
    """A run that cannot go on, as after a loss that is not finite: one line that says when, where and what to try.

    The commands print it without a traceback and end with exit code 1.
    """


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


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
