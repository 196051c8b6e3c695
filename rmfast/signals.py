"""What asks a process to end: signals, noted from its first moment on, and a file. Acted on where a run can stop."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rmfast.errors import Interrupted

ASKS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
GOES_ON = "the same command on the same run.dir goes on"
heard: list[str] = []
"""Names of the signals that came since the process began to note them."""
_noting = False
POLL = 1.0
"""Seconds between looks for a file."""


class StopFile:
    """A file by which a person asks. It is looked for now and then, and what was found stays so."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, False
        self._looked = -POLL

    def found(self) -> bool:
        """Whether it has been there."""
        now = time.monotonic()
        if not self.seen and now - self._looked >= POLL:
            self._looked, self.seen = now, self.path.exists()
        return self.seen


_file: StopFile | None = None


@contextmanager
def looking_for(path: Path) -> Iterator[None]:
    """Within it the file asks as signals do, wherever `asked` is."""
    global _file
    before, _file = _file, StopFile(path)
    try:
        yield
    finally:
        _file = before


def asked(look: bool = True) -> bool:
    """Whether a signal came, or the file that is looked for.

    Args:
        look: whether this process looks for the file, or tells what it has found.
    """
    return bool(heard) or (_file is not None and (_file.found() if look else _file.seen))


@contextmanager
def noted() -> Iterator[None]:
    """Take note of signals in place of dying of them, until the block ends; within another such block nothing changes.

    The second SIGINT ends the process. What is ignored stays so: SIGHUP under nohup, SIGINT of a script's background.
    """
    global _noting
    if _noting:
        yield
        return
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a forked helper, which its pool ends by SIGTERM
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        heard.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            if os.environ.get("RANK", "0") == "0":  # not by print, whose buffer the signal may have come into
                with suppress(OSError):  # of a console that is lost
                    os.write(2, b"\nrmfast: SIGINT: the run saves what it has and ends; a second one ends it at once\n")

    kept = [n for n in ASKS if n in (signal.SIGINT, signal.SIGHUP) and signal.getsignal(n) == signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in ASKS if number not in kept}
    heard.clear()
    _noting = True
    try:
        yield
    finally:
        _noting = False
        for number, handler in before.items():
            signal.signal(number, handler)


def left_to_parent() -> None:
    """Ignore signals in a helper, which its parent tells to end: a terminal and Slurm send them to all processes."""
    for number in ASKS:
        signal.signal(number, signal.SIG_IGN)


def interrupted(reached: str, found: str = "a signal to another rank") -> Interrupted:
    """What ends a run that was asked to.

    Args:
        reached: what is saved, or was left out. found: what asked, where this process has neither heard nor seen it.
    """
    seen = str(_file.path) if _file is not None and _file.seen else found
    return Interrupted(f"stopped by {' and '.join(dict.fromkeys(heard)) or seen}: {reached}; {GOES_ON}")


def check(reached: str) -> None:
    """End this process's work where it was asked to end.

    Raises:
        Interrupted: it was; see `interrupted`.
    """
    if asked():
        raise interrupted(reached)
