"""How a case ended, and what is wrong with that: one clear line is right, or work that was done."""

import contextlib
import io
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rmfast.errors import UserError

SECONDS = 20  # no odd input takes so long
LONGEST = 1500  # characters of a line


@dataclass(frozen=True)
class Outcome:
    """`code`: of the exit. `error`: what was printed as an error. `flaw`: why that is not right; empty where it is."""

    code: int
    error: str
    flaw: str


def outcome(run: Callable[[], Any], *, usage: bool = False) -> Outcome:
    """What comes of a call that ends, prints and raises as a command does.

    Args:
        usage: whether what is printed may begin with a command's usage, as argparse has it.
    """
    out, error = io.StringIO(), io.StringIO()
    try:
        with _limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = run()
    except SystemExit as end:
        code = end.code
    except UserError as raised:
        code = 2
        error.write(f"{raised}\n")
    except _TooLong:
        return Outcome(-1, "", f"took more than {SECONDS} s")
    except Exception as raised:
        place = traceback.extract_tb(raised.__traceback__)[-1]
        return Outcome(-1, "", f"{type(raised).__name__}: {raised} in {place.filename}:{place.lineno}")
    code = code if isinstance(code, int) else 0
    return Outcome(code, error.getvalue(), _flaw(code, error.getvalue(), usage))


def _flaw(code: int, error: str, usage: bool) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    if code not in (0, 2):
        return f"ended with {code}: {error}"
    if code == 2 and (not lines or (len(lines) > 1 and not (usage and lines[0].startswith("usage: ")))):
        return f"{len(lines)} lines: {error[:300]}"
    if code == 2 and (len(lines[-1]) > LONGEST or not lines[-1].isprintable()):
        return f"an odd line: {lines[-1][:300]!r}"
    return ""


class _TooLong(BaseException):
    """Nothing in between takes it for an error of its input."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
