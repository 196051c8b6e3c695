"""Two starts at once, launchers and helpers that die, folders and consoles that are lost."""

import os
import pty
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from functools import partial
from pathlib import Path
from termios import TIOCSCTTY
from typing import Any

from benchmarks.faults.cases import Case
from benchmarks.faults.damage import end_flaw, judged
from benchmarks.faults.results import other_bits, results
from benchmarks.faults.runs import Place
from benchmarks.faults.starts import PATIENCE, Job
from benchmarks.faults.traps import held_at, start_held, torchrun_held
from rmfast.data.files import write_text
from tests.runs import write_rows

ENDS = 30.0  # seconds within which orphans have to be gone
MANY = 6000  # rows, which other processes tokenise


def cases(place: Place, seed: int) -> Iterator[Case]:
    """All of them, each in several tasks."""
    kinds: dict[str, tuple[Callable[[Place, str, str], dict[str, Any]], tuple[str, ...]]] = {
        "second start": (
            second_start,
            ("reward", "sft", "ppo", "meta", "ensemble heads", "ensemble full", "reward ddp"),
        ),
        "at the same instant": (same_instant, ("reward", "ppo", "ensemble heads", "ensemble full")),
        "launcher is killed": (launcher_killed, ("reward ddp", "reward fsdp", "ppo ddp", "megatron tp2")),
        "torchrun is killed": (torchrun_killed, ("reward ddp",)),
        "tokenising workers": (tokenising_workers, ("reward",)),
        "folder removed": (folder_removed, ("reward", "ppo", "ensemble heads")),
        "folder moved": (folder_moved, ("reward", "sft")),
        "console's reader gone": (reader_gone, ("reward", "ppo", "reward ddp")),
        "console's disk full": (console_full, ("reward", "ensemble full")),
        "terminal closed": (terminal_closed, ("reward", "ppo")),
    }
    for kind, (work, setups) in kinds.items():
        for setup in setups:
            name = f"processes/{kind}/{setup}"
            yield Case(name, partial(work, place, setup, name))


PHASE = {"ppo": "updating", "ppo ddp": "updating", "ensemble heads": "step of heads"}
"""Where a run is held; others in a step."""


def _held(place: Place, setup: str, case: str, also: Callable[[], None] = lambda: None) -> tuple[Job, Path]:
    return start_held(place, setup, case, case, PHASE.get(setup, "step"), also)


def _ended(place: Place, setup: str, case: str, job: Job) -> str:
    """Why a start did not end well, with the bits of a whole run; empty where it did."""
    if any(codes := job.wait()):
        return f"ended with {codes}: {job.said()[-800:]}"
    return other_bits(results(place.run(case)), place.whole(setup)[0])


def second_start(place: Place, setup: str, case: str) -> dict[str, Any]:
    """While a run is at work: refused in a line, and the run goes on as if nothing had been."""
    job, held = _held(place, setup, case)
    second = place.start(setup, case, tag=".second")
    codes, said = second.wait(), second.said()
    held.unlink()
    flaw = end_flaw(codes, said) or ("" if {*codes} == {2} and "is in use by" in said else f"{codes}: {said[-500:]}")
    return judged(codes, said) | {"flaw": flaw or _ended(place, setup, case, job)}


def same_instant(place: Place, setup: str, case: str) -> dict[str, Any]:
    """One of two has the folder, and the other is refused."""
    jobs = [place.start(setup, case, tag=tag) for tag in (".one", ".two")]
    ends = sorted((job.wait(), job.said()) for job in jobs)
    codes = [one for one, _ in ends]
    flaw = "" if codes == [[0], [2]] else f"ended with {codes}: {[said[-500:] for _, said in ends]}"
    flaw = flaw or end_flaw(*ends[1]) or other_bits(results(place.run(case)), place.whole(setup)[0])
    return judged(*ends[1]) | {"flaw": flaw}


def launcher_killed(place: Place, setup: str, case: str) -> dict[str, Any]:
    """The process that started the ranks, as torchrun does: they end by themselves, and the next start goes on."""
    held, note = held_at(place, case), place.run(f"{case}.ranks")
    if not (launcher := os.fork()):
        try:
            os.environ["TORCHELASTIC_RUN_ID"] = "none"
            job, _ = _held(place, setup, case)
            write_text(note, " ".join(map(str, job.children)))
            time.sleep(PATIENCE)
        finally:
            os._exit(0)
    end = time.monotonic() + PATIENCE
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.02)
    ranks = [int(word) for word in note.read_text().split()]
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    seconds = _gone(ranks)
    note.unlink()
    held.unlink(missing_ok=True)
    if seconds is None:
        return {"flaw": f"ranks live {ENDS} s after their launcher"}
    return {"gone_after": seconds, "flaw": _ended(place, setup, case, place.start(setup, case))}


def torchrun_killed(place: Place, setup: str, case: str) -> dict[str, Any]:
    """The same with torchrun itself."""
    launcher, held, log = torchrun_held(place, setup, case, case, "step")
    ranks = _children(launcher.pid)
    launcher.kill()
    launcher.wait()
    seconds = _gone(ranks)
    held.unlink(missing_ok=True)
    if len(ranks) != 2 or seconds is None:
        return {"flaw": f"{len(ranks)} ranks, gone after {seconds}: {log.read_text()[-800:]}"}
    return {"gone_after": seconds, "flaw": _ended(place, setup, case, place.start(setup, case))}


def tokenising_workers(place: Place, setup: str, case: str) -> dict[str, Any]:
    """They end with the run that was killed, whose half-built cache is swept by the next start."""
    run = place.run(case)
    run.mkdir(parents=True)
    rows = write_rows(run / "rows.jsonl", MANY)
    keys = {"data__train": rows, "data__cache": run / "cache", "run__max_steps": 2}
    job = place.start(setup, f"{case}/run", **keys)
    job.until(lambda: bool(_children(job.children[0])) and any((run / "cache").glob(".*")))
    time.sleep(0.5)
    workers = _children(job.children[0])
    job.send(signal.SIGKILL)
    job.wait()
    seconds, left = _gone(workers), len(list((run / "cache").glob(".*")))
    job = place.start(setup, f"{case}/run", **keys)
    codes = job.wait()
    still = sorted(path.name for path in (run / "cache").glob(".*"))
    flaw = f"ended with {codes}: {job.said()[-500:]}" if any(codes) else ""
    if not workers or seconds is None or still:
        flaw = flaw or f"{len(workers)} workers, gone after {seconds}, then in the cache: {still}"
    return {"gone_after": seconds, "half_built": left, "flaw": flaw}


def _children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def _gone(processes: list[int]) -> float | None:
    """Seconds until all have ended; None where some have not in time."""
    began = time.monotonic()
    while any(_lives(process) for process in processes):
        if time.monotonic() - began > ENDS:
            for process in filter(_lives, processes):
                os.kill(process, signal.SIGKILL)
            return None
        time.sleep(0.02)
    return round(time.monotonic() - began, 2)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def folder_removed(place: Place, setup: str, case: str) -> dict[str, Any]:
    """The run ends in one line, and makes no new folder."""
    job, held = _held(place, setup, case)
    while place.run(case).exists():  # a save may be on its way
        shutil.rmtree(place.run(case), ignore_errors=True)
    held.unlink()
    codes, said = job.wait(), job.said()
    flaw = end_flaw(codes, said) or ("" if codes == [1] else f"ended with {codes}")
    left = sorted(path.name for path in place.run(case).rglob("*")) if place.run(case).exists() else []
    return judged(codes, said) | {"flaw": flaw or (f"was made again, with {left}" if left else "")}


def folder_moved(place: Place, setup: str, case: str) -> dict[str, Any]:
    """The run ends in one line; it goes on where the folder is moved back."""
    job, held = _held(place, setup, case)
    moved = place.run(f"{case}.moved")
    place.run(case).rename(moved)
    held.unlink()
    codes, said = job.wait(), job.said()
    if flaw := end_flaw(codes, said) or ("" if codes == [1] else f"ended with {codes}"):
        return {"flaw": flaw}
    if place.run(case).exists():
        return {"flaw": "was made again"}
    moved.rename(place.run(case))
    return judged(codes, said) | {"flaw": _ended(place, setup, case, place.start(setup, case))}


def reader_gone(place: Place, setup: str, case: str) -> dict[str, Any]:
    """A pipe that nobody reads any more costs what is printed."""
    reads, writes = os.pipe()

    def also() -> None:
        os.close(reads)
        os.dup2(writes, 1)
        os.dup2(writes, 2)

    job, held = _held(place, setup, case, also=also)
    os.close(reads)
    os.close(writes)
    held.unlink()
    return {"flaw": _ended(place, setup, case, job)}


def console_full(place: Place, setup: str, case: str) -> dict[str, Any]:
    """A log whose disk is full, too."""
    full = os.open("/dev/full", os.O_WRONLY)

    def also() -> None:
        os.dup2(full, 1)
        os.dup2(full, 2)

    job = place.start(setup, case, prepare=also)
    os.close(full)
    return {"flaw": _ended(place, setup, case, job)}


def terminal_closed(place: Place, setup: str, case: str) -> dict[str, Any]:
    """The system sends SIGHUP, and the run saves what it has."""
    master, slave = pty.openpty()

    def also() -> None:
        os.close(master)
        ioctl(slave, TIOCSCTTY, 0)
        for number in (0, 1, 2):
            os.dup2(slave, number)

    job, held = _held(place, setup, case, also=also)
    os.close(slave)
    os.close(master)
    codes = job.wait()
    held.unlink(missing_ok=True)
    if codes != [0] or not (place.run(case) / "requeue").exists():
        return {"flaw": f"ended with {codes}, requeue: {(place.run(case) / 'requeue').exists()}"}
    return {"flaw": _ended(place, setup, case, place.start(setup, case))}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many there were, and how long the longest orphan lived."""
    seconds = [record["gone_after"] for record in records if record.get("gone_after") is not None]
    return {"cases_of_processes": len(records), "orphans_gone_after_seconds": max(seconds, default=None)}
