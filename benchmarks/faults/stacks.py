"""Why a process does not end: its Python stacks and the native ones, taken before it is killed."""

import faulthandler
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

ASK = signal.SIGQUIT  # which no run takes note of and no case sends
SECONDS = 60.0  # that a debugger may take, which reads torch's symbols
GDB = ("gdb", "-nx", "-batch", "-ex", "set pagination off", "-ex", "thread apply all backtrace 25", "-p")


def answer_with_stacks(file: Path) -> None:
    """Let this process write its Python stacks to a file where it gets `ASK`, also while it holds the interpreter's
    lock for ever."""
    faulthandler.register(ASK, file=file.open("w", encoding="utf-8"), all_threads=True)


def stacks(process: int, file: Path) -> str:
    """The stacks of all threads of a process that answers with them in `file`, where it still can."""
    os.kill(process, ASK)
    time.sleep(0.5)
    python = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    return f"process {process}\n{python}\n{_by_gdb(process) if shutil.which('gdb') else _by_kernel(process)}"


def _by_gdb(process: int) -> str:
    try:
        found = subprocess.run([*GDB, str(process)], capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return _by_kernel(process)
    return "\n".join(line for line in found.stdout.splitlines() if line.startswith(("#", "Thread")))


def _by_kernel(process: int) -> str:
    """In which of the kernel's calls each thread waits."""
    lines = []
    for task in sorted(Path(f"/proc/{process}/task").iterdir()):
        for name in ("comm", "wchan", "syscall", "stack"):
            with suppress(OSError):  # of a thread that has ended, or of what is hidden from this user
                lines.append(f"{task.name} {name}: {(task / name).read_text().strip()}")
    return "\n".join(lines)
