"""What commands and runs print."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)
"""Of a disk or a pipe that may have room again; what else keeps a line from being printed will keep all others."""


def say(text: str) -> None:
    """Print a line at once, so that it survives in a log of a killed job."""
    print(text, file=sys.stdout, flush=True)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Within it nothing is printed: what it would say was said before, or will be."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def clock(seconds: float) -> str:
    """A time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """Within it a console that is lost (a closed pipe or terminal, a full disk) costs what is printed and no more."""
    out, err = sys.stdout, sys.stderr
    with (
        contextlib.redirect_stdout(_Unbreakable(out) if out is not None else None),
        contextlib.redirect_stderr(_Unbreakable(err) if err is not None else None),
    ):
        yield


class _Unbreakable:
    """A stream that drops what it cannot write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Empty the buffer, which would be written again and again, and all that follows where there is no hope."""
        handle = self._stream.fileno()
        before, nowhere = os.dup(handle), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, handle)
        self._stream.flush()
        if error.errno in FULL:
            os.dup2(before, handle)
        os.close(before)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
