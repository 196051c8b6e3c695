"""Signals to torchrun and to a rank in every phase: what was reached is saved, and the next start ends whole."""

import random
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.faults.cases import Case
from benchmarks.faults.damage import end_flaw
from benchmarks.faults.results import other_bits, results
from benchmarks.faults.runs import Place, draw_of
from benchmarks.faults.starts import PATIENCE
from benchmarks.faults.traps import start_held, torchrun_held
from rmfast.trainer.stop import REQUEUE

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
OF_PPO = ("sampling", "scoring", "updating")
OF_ALL = ("tokenising", "loading", "before the first step", "step", "saving", "evaluating", "exporting")
LATE = 0.5  # seconds in which torchrun passes a signal on


def cases(place: Place, seed: int) -> Iterator[Case]:
    """Each signal in each phase: to one of two ranks, and to torchrun."""
    for phase in (*OF_ALL, *OF_PPO):
        for name in SIGNALS:
            case = f"signals/rank/{phase}/{name}"
            yield Case(case, partial(to_rank, place, case, phase, name, draw_of(seed, case)))
    for phase in (*OF_ALL, *OF_PPO):
        for name in SIGNALS:
            case = f"signals/torchrun/{phase}/{name}"
            yield Case(case, partial(to_torchrun, place, case, phase, name))


def to_rank(place: Place, case: str, phase: str, name: str, draw: random.Random) -> dict[str, Any]:
    """To one of two ranks, which both end with code 0."""
    setup, cache = "ppo ddp" if phase in OF_PPO else "reward ddp", place.run(case) / "cache"
    job, held = start_held(place, setup, case, f"{case}/run", phase, data__cache=cache)
    rank = draw.randrange(2)
    job.send(getattr(signal, name), rank)
    if rank:  # the first one, which is held, hears of it later
        job.until(lambda: False, LATE / 5)
        held.unlink()
    codes, said = job.wait(), job.said()
    held.unlink(missing_ok=True)
    flaw = end_flaw(codes, said) or (f"ended with {codes}: {said[-800:]}" if any(codes) else "")
    return {"rank": rank, "outcome": str(codes), "flaw": flaw or _goes_on(place, case, setup)}


def to_torchrun(place: Place, case: str, phase: str, name: str) -> dict[str, Any]:
    """To torchrun itself, which passes it on; by docs/training.md its code says nothing, and the marker all."""
    setup, cache = "ppo" if phase in OF_PPO else "reward", place.run(case) / "cache"
    passed = ("--signals_to_handle", ",".join(SIGNALS))
    launcher, held, log = torchrun_held(place, setup, case, f"{case}/run", phase, *passed, data__cache=cache)
    launcher.send_signal(getattr(signal, name))
    code, said = launcher.wait(PATIENCE), log.read_text(encoding="utf-8")
    held.unlink()
    flaw = "" if code in (0, 1) else f"torchrun ended with {code}: {said[-800:]}"
    return {"outcome": str(code), "flaw": flaw or _goes_on(place, case, setup)}


def _goes_on(place: Place, case: str, setup: str) -> str:
    """What is wrong with a stopped run: it left its marker, and goes on to the bits of a whole one.

    One that was nearly done has ended first, and has these bits.
    """
    run = place.run(f"{case}/run")
    if not (run / REQUEUE).is_file():
        ended = (run / "summary.json").is_file()
        return other_bits(results(run), place.whole(setup)[0]) if ended else f"left no {REQUEUE}"
    job = place.start(setup, f"{case}/run", data__cache=place.run(case) / "cache")
    if any(codes := job.wait()):
        return f"the next start ended with {codes}: {job.said()[-800:]}"
    if (run / REQUEUE).exists():
        return f"the next start left {REQUEUE}"
    return other_bits(results(run), place.whole(setup)[0])


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many there were."""
    return {"signals": len(records), "to_torchrun": sum("/torchrun/" in record["case"] for record in records)}
