"""Runs a command and ends it, with all that it started, when the harness is gone: `guard.py FD COMMAND ...`.

FD is the reading end of a pipe whose other end only the harness holds: the kernel closes it however the harness ends,
by SIGKILL too. The guard leads a session of its own, so its process group is the command and its children.
"""

import os
import signal
import subprocess
import sys
import threading


def watch(pipe: int) -> None:
    """Wait for the harness's end, then end the group."""
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


def main(pipe: str, *command: str) -> int:
    """Entry point: the command's code, or 128 and the signal that ended it."""
    threading.Thread(target=watch, args=(int(pipe),), daemon=True).start()
    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # without waiting for the thread
