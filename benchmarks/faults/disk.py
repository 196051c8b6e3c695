"""Disks that fill, and one that is read-only: a line says so, what is safe stays, and with room the run ends right."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.cases import Case
from benchmarks.faults.damage import end_flaw, judged
from benchmarks.faults.kills import unfinished
from benchmarks.faults.results import other_bits, results
from benchmarks.faults.runs import Place

LEVELS = {
    "reward": (16, 64, 1000, 3000, 6000, 7500),
    "ppo": (16, 64, 400, 700, 1000, 1500),
    "ensemble heads": (16, 64, 150, 300, 900, 1500),
    "reward ddp": (1000, 6000),
}
"""KiB at which a disk is full: in the first files, each of the checkpoints, the export."""
CLONE_NEWNS = 0x20000
MIB = 64


def cases(place: Place, seed: int) -> Iterator[Case]:
    """Each level of each setup, then a disk that nothing can be written to."""
    for setup, levels in LEVELS.items():
        for level in levels:
            name = f"disk/{setup}/{level} KiB"
            yield Case(name, partial(filled, place, setup, name, level))
    yield Case("disk/read-only", partial(read_only, place, "disk/read-only"))


def filled(place: Place, setup: str, case: str, size: int) -> dict[str, Any]:
    """Run on a disk of so many KiB, then with room."""
    run = place.run(case) / "run"
    with _mounted(place.run(case), f"size={size}k") as reason:
        if reason:
            return {"skipped": reason, "flaw": ""}
        job = place.start(setup, f"{case}/run", prepare=no_pauses)
        codes, said = job.wait(), job.said()
        flaw = end_flaw(codes, said)
        if not flaw and any(codes) and "No space left" not in said:
            flaw = f"says nothing of the disk: {said[-800:]}"
        if not flaw and (left := [*unfinished(run), *run.glob(".*.partial*")]):
            flaw = f"left {sorted(map(str, left))}"
        _mount("remount", f"size={MIB}m", place.run(case))
        job = place.start(setup, f"{case}/run")
        if not flaw and any(again := job.wait()):
            flaw = f"ended with {again} where there was room: {job.said()[-800:]}"
        flaw = flaw or other_bits(results(run), place.whole(setup)[0])
    return judged(codes, said) | {"flaw": flaw}


def read_only(place: Place, case: str) -> dict[str, Any]:
    """A run on a disk that became read-only between two starts: refused in a line, and it goes on afterwards."""
    with _mounted(place.run(case), f"size={MIB}m") as reason:
        if reason:
            return {"skipped": reason, "flaw": ""}
        job = place.start("reward", f"{case}/run")
        job.until(lambda: any((place.run(case) / "run").glob("checkpoints/step-*")))
        job.send(9)
        job.wait()
        _mount("remount", "ro", place.run(case))
        job = place.start("reward", f"{case}/run")
        codes, said = job.wait(), job.said()
        flaw = end_flaw(codes, said) or ("" if codes == [2] and "Read-only" in said else f"{codes}: {said[-500:]}")
        _mount("remount", "rw", place.run(case))
        job = place.start("reward", f"{case}/run")
        if any(again := job.wait()):
            flaw = flaw or f"ended with {again} afterwards: {job.said()[-500:]}"
        flaw = flaw or other_bits(results(place.run(case) / "run"), place.whole("reward")[0])
    return judged(codes, said) | {"flaw": flaw}


def no_pauses() -> None:
    """Between tries of the last checkpoint, which here end alike."""
    import rmfast.trainer.run

    rmfast.trainer.run.LAST_PAUSES = (0.0, 0.0)


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[str]:
    """A disk in memory, which no other process sees, and which ends with this one; why there is none, where so."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        yield "only root mounts a disk"
        return
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) or _call("mount", "--make-rprivate", "/"):
        yield "this process gets no mounts of its own"
        return
    if reason := _call("mount", "-t", "tmpfs", "-o", options, "rmfast-faults", str(folder)):
        yield reason
        return
    try:
        yield ""
    finally:
        _call("umount", "--lazy", str(folder))


def _mount(*words: str | Path) -> None:
    *options, folder = map(str, words)
    if reason := _call("mount", "-o", ",".join(options), folder):
        raise RuntimeError(reason)


def _call(*words: str) -> str:
    """What kept a command from doing its work; empty where nothing did."""
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many there were, and why some were not run."""
    skipped = sorted({record["skipped"] for record in records if record.get("skipped")})
    return {"disks": len(records), "skipped": skipped}
