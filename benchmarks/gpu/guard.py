"""Runs a command for some seconds and ends it, with all that it started: `guard.py FD SECONDS COMMAND ...`.

It also ends them when the harness is gone: FD is the reading end of a pipe whose other end only the harness holds, and
the kernel closes that however the harness ends, by SIGKILL too. The guard leads a session of its own, so its process
group is the command and its children; where it ends them it ends by SIGKILL itself.
"""

import os
import select
import signal
import subprocess
import sys
import threading


def watch(pipe: int, seconds: float) -> None:
    """Wait for the end of the harness or of the time, then end the group."""
    select.select([pipe], [], [], seconds)
    os.killpg(0, signal.SIGKILL)


def main(pipe: str, seconds: str, *command: str) -> int:
    """Entry point: the command's code, or 128 and the signal that ended it."""
    threading.Thread(target=watch, args=(int(pipe), float(seconds)), daemon=True).start()
    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # without waiting for the thread
