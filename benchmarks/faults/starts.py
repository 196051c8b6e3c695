"""Starts of training processes that cost no imports: each rank is a fork of this process, which has paid for them.

A rank has a session of its own, files in place of a console, and the variables that torchrun would set. All else is
real: processes that die of signals, the kernel's locks, files on a disk.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.faults.stacks import answer_with_stacks, stacks
from tests.megatron import standin
from tests.runs import TRACEBACK, meeting_point

PATIENCE = 120.0
"""Seconds that a start of a tiny run may take, on a busy machine."""
POLL = 0.002
IMPORTED = (
    *("torch._dynamo", "torch.distributed.fsdp", "transformers.models.llama.modeling_llama"),
    *("rmfast.train", "rmfast.checkpoint.export", "rmfast.report.html", "rmfast.tasks.ensemble.run"),
    *(f"rmfast.tasks.{task}" for task in ("meta", "ppo", "reward", "sft")),
)
HUNG = 99  # in place of the exit code of a rank that had to be ended
hangs: list[str] = []
"""The stacks of ranks that had to be ended, for the record of the case that is run."""


def preload() -> None:
    """Import what any rank will."""
    for name in IMPORTED:
        import_module(name)
    torch.set_num_threads(1)  # its threads do not survive a fork


def unignored() -> None:
    """Take signals that a parent in a shell's background ignores."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def no_reports() -> None:
    """The plots take longer than all the rest of a tiny run."""
    import rmfast.tasks.build.training as training
    import rmfast.tasks.ensemble.strength as strength

    training.write_report = lambda folder: None
    strength.write_ensemble_report = lambda *_: []


@dataclass
class Job:
    """The ranks of a start, as their parent sees them. `codes`: of those that have ended, by rank."""

    children: list[int]
    logs: list[Path]
    meeting: contextlib.ExitStack
    began: float = field(default_factory=time.monotonic)
    codes: dict[int, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def send(self, number: int, *ranks: int) -> None:
        """A signal to some ranks, or to all that have not ended."""
        for rank in ranks or range(len(self.children)):
            if rank not in self.codes:
                os.kill(self.children[rank], number)

    def ended(self) -> bool:
        """Whether all ranks have."""
        for rank, child in enumerate(self.children):
            if rank not in self.codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.children)

    def until(self, reached: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait until something holds, the job ends or the time is over; whether it holds."""
        end = time.monotonic() + seconds
        while not (found := reached()) and not self.ended() and time.monotonic() < end:
            time.sleep(POLL)
        return found or reached()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit codes by rank, once all have ended; `HUNG` of those that had to be killed for it."""
        if not self.until(self.ended, seconds):
            hung = [rank for rank in range(len(self.children)) if rank not in self.codes]
            hangs.extend(f"rank {rank}, {stacks(self.children[rank], _stacks_of(self.logs[rank]))}" for rank in hung)
            self.send(signal.SIGKILL)
            self.until(self.ended)
            self.codes |= dict.fromkeys(hung, HUNG)
        self.meeting.close()
        return [self.codes[rank] for rank in range(len(self.children))]

    def said(self) -> str:
        """What all ranks printed, one after another."""
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in self.logs)


def start(logs: Path, arguments: Sequence[str], ranks: int = 1, prepare: Callable[[], None] = lambda: None) -> Job:
    """Start the ranks of a run; what rank R prints is in the file `logs`-R.log.

    Args:
        prepare: called in each of them before it begins.
    """
    if "megatron" in arguments:
        import_module("rmfast.parallel.megatron.engine")
    meeting = contextlib.ExitStack()
    place = meeting.enter_context(meeting_point(ranks)) if ranks > 1 else {}
    job = Job([], [logs.with_name(f"{logs.name}-{rank}.log") for rank in range(ranks)], meeting)
    logs.parent.mkdir(parents=True, exist_ok=True)
    for rank, log in enumerate(job.logs):
        log.touch()  # of a rank that is killed before it opens it
        variables = place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if place else {}
        job.children.append(os.fork() or _work(log, arguments, variables, prepare))
    return job


def _stacks_of(log: Path) -> Path:
    """Where the rank of a log writes its stacks; a name that goes with the log."""
    return log.with_suffix(".stacks.log")


def _work(log: Path, arguments: Sequence[str], variables: dict[str, str], prepare: Callable[[], None]) -> int:
    """What a rank does; it does not return."""
    code = TRACEBACK
    try:
        os.setsid()
        unignored()
        answer_with_stacks(_stacks_of(log))
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
        os.environ |= variables
        no_reports()
        if "megatron" in arguments:
            standin.install()
        prepare()
        from rmfast.train import main

        code = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
