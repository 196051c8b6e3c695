"""Which process holds or writes something, told apart from a later one of the same number, and whether it lives."""

import json
import os
import re
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        host: the machine's name. boot: of its kernel's start; "" where the system does not say.
        space: of its process numbers, of which each container has one; "" where the system does not say.
        pid: its number. began: when it started, in the kernel's ticks since boot; None where that is not known.
        since: that it holds what it does, for people.
        job, restarts: Slurm's job, "" without one, and how often it was queued again.
        launchers: see `launcher`; those of all ranks of its run.
    """

    host: str
    boot: str
    space: str
    pid: int
    began: int | None
    since: str
    job: str
    restarts: int
    launchers: tuple[str, ...] = ()

    def __str__(self) -> str:
        job = f", job {self.job}" + (f" restart {self.restarts}" if self.restarts else "") if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"

    def text(self) -> str:
        """As a line of JSON; `read_process` reads it."""
        return json.dumps(asdict(self)) + "\n"

    def same(self, other: "Process") -> bool:
        """Whether both are one process."""
        return self.same_kernel(other) and (self.pid, self.began) == (other.pid, other.began)

    def same_kernel(self, other: "Process") -> bool:
        """Whether both run on one start of one machine."""
        return (self.host, self.boot) == (other.host, other.boot)

    def is_gone(self, here: "Process") -> bool:
        """Whether it has ended, as far as `here` can tell: False for one of another machine or container."""
        if not self.same_kernel(here) or self.space != here.space:
            return False
        return not _lives(self.pid) or _began(self.pid) not in (self.began, None)  # None: hidden from this user

    def followed_by(self, other: "Process") -> bool:
        """Whether the other is a later start of the same Slurm job, or of the same torchrun: one that restarts its
        workers has ended those before, and with them their run, wherever this process was."""
        queued_again = bool(self.job) and self.job == other.job and other.restarts > self.restarts
        return queued_again or not set(self.launchers).isdisjoint(other.launchers)


def this_process() -> Process:
    """The one that asks."""
    pid, restarts = os.getpid(), os.environ.get("SLURM_RESTART_COUNT", "")
    return Process(
        host=socket.gethostname(),
        boot=_boot(),
        space=_space(),
        pid=pid,
        began=_began(pid),
        since=f"{datetime.now():%F %T}",
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=int(restarts) if restarts.isdecimal() else 0,
    )


def launcher() -> str:
    """Tells the torchrun that started this process from every other one; "" where none did, or where the system says
    too little to tell.

    The id of its rendezvous does not: it is "none" unless it is given, and whoever starts a job twice gives it twice.
    """
    parent = os.getppid()
    began, boot = _began(parent), _boot()
    if "TORCHELASTIC_RUN_ID" not in os.environ or began is None or not boot:
        return ""
    return blake2b(repr((boot, _space(), parent, began)).encode(), digest_size=8).hexdigest()


def read_process(text: str) -> Process | None:
    """What `Process.text` wrote; None of any other text."""
    try:
        values = json.loads(text)
        found = Process(**values | {"launchers": tuple(values.get("launchers", ()))})
        typed = isinstance(found.pid, int) and isinstance(found.restarts, int) and isinstance(found.host, str)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found if typed else None


def tag() -> str:
    """Of this process, for a file's name: host, space and number."""
    return f"{_machine()}-{os.getpid()}"


def left_behind(name: str) -> bool:
    """Whether a file's name has the `tag` of a process of this machine that has ended."""
    found = re.search(rf"\.{re.escape(_machine())}-(\d+)\.", name)
    return found is not None and not _lives(int(found[1]))


def _boot() -> str:
    return _first_line(PROC / "sys" / "kernel" / "random" / "boot_id")


def _machine() -> str:
    return f"{socket.gethostname()}-{_space()}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return _state(pid)[:1] != ["Z"]


def _state(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name, which may hold anything."""
    return _first_line(PROC / str(pid) / "stat").rpartition(")")[2].split()


def _began(pid: int) -> int | None:
    fields = _state(pid)
    return int(fields[19]) if len(fields) > 19 else None


def _space() -> str:
    with suppress(OSError):
        return os.readlink(PROC / "self" / "ns" / "pid").strip("pid:[]")
    return ""


def _first_line(file: Path) -> str:
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace").strip()
    return ""
