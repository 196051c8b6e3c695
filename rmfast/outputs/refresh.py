"""Run as a script by rmfast.outputs.lock: touches an open file every so many seconds, for as long as its parent lives.

A separate process, because a thread of the parent waits for the interpreter's lock, which a call may hold for minutes
(a library that writes a large file). It imports nothing of rmfast, so that it starts in milliseconds.
"""

import os
import select
import signal
import sys


def refresh(file: int, seconds: float) -> None:
    """Touch an open file until standard input ends or the parent does. Signals to the whole job are the parent's."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    while not select.select([0], [], [], seconds)[0] and os.getppid() == parent:
        try:
            os.utime(file)
        except OSError:  # as of a server that does not answer for now
            continue


if __name__ == "__main__":
    refresh(int(sys.argv[1]), float(sys.argv[2]))
