"""Holds a run at a point of a phase until something has been done to it from outside."""

import os
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.faults.runs import SETUPS, Place
from benchmarks.faults.starts import PATIENCE, POLL, Job, unignored
from tests.runs import ROOT, environment, torchrun

PHASES = {
    "tokenising": ("rmfast.data.store", "encode_chunk", 1),
    "loading": ("rmfast.parallel.native:NativeEngine", "__init__", 1),
    "before the first step": ("rmfast.trainer.loop", "take_steps", 1),
    "step": ("rmfast.parallel.stepping:Stepping", "optimizer_step", 5),
    "step of heads": ("rmfast.tasks.ensemble.head_learner:HeadLearner", "step", 5),
    "saving": ("rmfast.checkpoint.saver", "write_part", 1),
    "evaluating": ("rmfast.parallel.native:NativeEngine", "score", 2),
    "exporting": ("rmfast.checkpoint.export", "write_model", 1),
    "sampling": ("rmfast.trainer.ppo.rollouts", "sample_record", 10),
    "scoring": ("rmfast.trainer.ppo.learner", "score_answers", 2),
    "updating": ("rmfast.parallel.stepping:Stepping", "optimizer_step", 3),
}
"""The function whose call of that number is held, and where it is."""


def trap(phase: str, place: Path) -> Callable[[], None]:
    """What lets the first rank wait in a phase: it makes the file `place`, and goes on when that is gone or it heard a
    signal."""

    def install() -> None:
        from rmfast import signals

        if os.environ.get("RANK", "0") != "0":
            return
        where, name, left = PHASES[phase]
        module, _, inside = where.partition(":")
        holder = import_module(module)
        holder = getattr(holder, inside) if inside else holder
        function = getattr(holder, name)

        def trapped(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                place.touch()
                end = time.monotonic() + PATIENCE / 4
                while place.exists() and not signals.heard and time.monotonic() < end:
                    time.sleep(POLL)
            return function(*arguments, **named)

        setattr(holder, name, trapped)

    return install


def held_at(place: Place, case: str) -> Path:
    """The file by which a case's run is held."""
    held = place.run(f"{case}.held")
    held.parent.mkdir(parents=True, exist_ok=True)
    return held


def start_held(
    place: Place, setup: str, case: str, run: str, phase: str, also: Callable[[], None] = lambda: None, **keys: object
) -> tuple[Job, Path]:
    """Start a run, and wait until it is held in a phase; by which file it is.

    Args:
        also: called in each of its ranks before it begins.

    Raises:
        RuntimeError: it has ended.
    """
    held = held_at(place, case)
    install = trap(phase, held)

    def prepare() -> None:
        also()
        install()

    job = place.start(setup, run, prepare=prepare, **keys)
    if not job.until(held.exists):
        raise RuntimeError(f"ended before it was held: {job.wait()} {job.said()[-1500:]}")
    return job, held


def torchrun_held(
    place: Place, setup: str, case: str, run: str, phase: str, *options: str, **keys: object
) -> tuple["subprocess.Popen[bytes]", Path, Path]:
    """The same by torchrun itself, which has these options: its process, by which file the run is held, the log.

    Raises:
        RuntimeError: it has ended.
    """
    held, log = held_at(place, case), place.folder / "logs" / f"{case}-torchrun.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    worker = Path(__file__).with_name("worker.py")
    words = [*torchrun(SETUPS[setup].ranks), *options, str(worker), *place.command(setup, run, **keys)]
    variables = environment() | {"FAULTS_PHASE": phase, "FAULTS_PLACE": str(held), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        launcher = subprocess.Popen(
            words, env=variables, stdout=out, stderr=out, cwd=ROOT, start_new_session=True, preexec_fn=unignored
        )
    end = time.monotonic() + PATIENCE
    while not held.exists():
        if launcher.poll() is not None or time.monotonic() > end:
            launcher.kill()
            raise RuntimeError(f"ended before it was held: {launcher.wait()} {log.read_text()[-1500:]}")
        time.sleep(POLL)
    return launcher, held, log
