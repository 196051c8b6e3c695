"""SIGKILL at random instants, and while a checkpoint is written: every run goes on to the same bits."""

import random
import re
import signal
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.faults.cases import Case
from benchmarks.faults.results import farthest, other_bits, results
from benchmarks.faults.runs import SETUPS, Place, draw_of
from benchmarks.faults.starts import Job

KILLS = 200
EACH = 4  # kills of a case
BOUND = 1e-5
"""How far figures and weights may be apart where a run went on at another number of ranks, relative beyond 1."""
SAVES = 3  # of which the first, second or third is aimed at


def cases(place: Place, seed: int) -> Iterator[Case]:
    """So many of every setup that there are `KILLS`, and one of each setup that goes on at another number of ranks."""
    same = [name for name, setup in SETUPS.items() if not setup.other]
    for setup in same:
        for number in range(-(-KILLS // (EACH * len(same)))):
            name = f"kills/{setup}/{number}"
            yield Case(name, partial(killed, place, setup, name, draw_of(seed, name)))
    for setup in (name for name, one in SETUPS.items() if one.other):
        name = f"kills/{setup}"
        yield Case(name, partial(elsewhere, place, setup, name, draw_of(seed, name)))


def killed(place: Place, setup: str, name: str, draw: random.Random) -> dict[str, Any]:
    """Kill a run some times and let it go on to its end; where that comes too early, another run follows."""
    whole, seconds = place.whole(setup)
    kills: list[dict[str, Any]] = []
    for run in count():
        folder = f"{name}/{run}"
        job, struck = place.start(setup, folder), None
        while len(kills) < EACH and (struck := strike(job, place.run(folder), aim(kills), seconds, draw)):
            kills.append(struck | {"run": run})
            job = place.start(setup, folder)
        codes = job.wait()
        if any(codes):
            return {"kills": kills, "flaw": f"{folder} ended with {codes}: {job.said()[-800:]}"}
        if flaw := other_bits(results(place.run(folder)), whole):
            return {"kills": kills, "flaw": f"{folder}: {flaw}"}
        if len(kills) == EACH:
            return {"kills": kills, "flaw": ""}
    raise AssertionError


def aim(kills: list[dict[str, Any]]) -> str:
    """What the next kill is aimed at: a third of them come while a checkpoint is written."""
    return "save" if 3 * sum(bool(kill["unfinished"]) for kill in kills) <= len(kills) else "instant"


def elsewhere(place: Place, setup: str, name: str, draw: random.Random) -> dict[str, Any]:
    """Kill a run once there is a checkpoint, and let it go on at another number of ranks."""
    whole, seconds = place.whole(setup)
    for run in count():
        folder = f"{name}/{run}"
        job = place.start(setup, folder)
        job.until(partial(_has_saved, place.run(folder)))
        if struck := strike(job, place.run(folder), "instant", draw.uniform(0, seconds / 4), draw):
            break
    job = place.start(setup, folder, SETUPS[setup].other)
    if any(codes := job.wait()):
        return {"kills": [struck], "flaw": f"ended with {codes}: {job.said()[-800:]}"}
    far, where = farthest(results(place.run(folder)), whole)
    flaw = "" if far <= BOUND else f"{far:.1e} apart: {where}"
    return {"kills": [struck], "ranks": SETUPS[setup].other, "apart": far, "flaw": flaw}


def _has_saved(run: Path) -> bool:
    return any(run.glob("checkpoints/step-*"))


def strike(job: Job, run: Path, aim: str, seconds: float, draw: random.Random) -> dict[str, Any] | None:
    """Kill a rank of a start, and the others at that instant or soon after it; None where it has ended before.

    Args:
        aim: "save": once the folder of an unfinished checkpoint is there; else at an instant of these seconds.
    """
    if aim == "save":
        wanted, seen = draw.randrange(SAVES), set[str]()

        def saving() -> bool:
            now = unfinished(run)
            seen.update(now)
            return bool(now) and len(seen) > wanted

        job.until(saving)
    else:
        instant = draw.uniform(0.0, seconds)
        job.until(lambda: job.seconds >= instant)
    if job.ended():
        return None
    rank, after = draw.randrange(len(job.children)), job.seconds
    job.send(signal.SIGKILL, rank)
    left = unfinished(run)
    job.until(lambda: False, draw.choice([0.0, 0.3]))  # of another rank, which may end by itself
    job.send(signal.SIGKILL)
    codes = job.wait()
    if codes[rank] != -signal.SIGKILL:
        return None
    said = re.findall(r"^(?:resumed from )?step +(\d+)", job.said(), re.M)
    record = {"aim": aim, "rank": rank, "after_seconds": round(after, 3), "reached": int(said[-1]) if said else 0}
    return record | {"unfinished": sorted(left)}


def unfinished(run: Path) -> set[str]:
    """Checkpoints that are being written, or were when their writer was killed."""
    folders = (run, *run.glob("members/*"))
    return {str(left.relative_to(run)) for folder in folders for left in folder.glob("checkpoints/.step-*")}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the records of all kills come to."""
    kills = [kill for record in records for kill in record.get("kills", ())]
    return {
        "kills": len(kills),
        "left_an_unfinished_checkpoint": sum(bool(kill["unfinished"]) for kill in kills),
        "aimed_at_a_save": sum(kill["aim"] == "save" for kill in kills),
        "farthest_at_another_number_of_ranks": max((r["apart"] for r in records if "apart" in r), default=None),
    }
