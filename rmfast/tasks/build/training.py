"""A training run put together: its engine, learner and run, from the first line to the published model."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from rmfast.checkpoint.export import LATER
from rmfast.config import Config
from rmfast.console import say
from rmfast.data.files import write_text
from rmfast.errors import LimitReached
from rmfast.jsonio import finite_or_null
from rmfast.kernels import describe
from rmfast.parallel.agree import main_alone
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.report.html import write_report
from rmfast.report.run_folder import read_run
from rmfast.report.summary import skipped_line
from rmfast.tasks.build.choices import choices, choices_line
from rmfast.tasks.build.engine import describe_parallel
from rmfast.tasks.build.folder import RunFolder, run_folder
from rmfast.tasks.build.inputs import open_world
from rmfast.trainer.learner import Learner
from rmfast.trainer.loop import fit
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest, listening


class Ending(Protocol):
    """How a run ends."""

    def export(self) -> Sequence[str]:
        """Export what was trained and prove that transformers agrees. All ranks call it.

        Returns:
            Lines that say so.
        """
        ...

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """The console's last words, of the last evaluation's metrics."""
        ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a task trains, ready to begin.

    Args:
        size: of a step, as in "8 groups".
        beginning: what a new run begins with; `notes` are lines that a resumed run says too.
    """

    config: Config
    world: World
    engine: Engine
    learner: Learner
    run: Run
    ending: Ending
    size: str
    beginning: Callable[[], Sequence[str]]
    notes: tuple[str, ...] = ()

    def train(self, stop: StopRequest | None = None) -> None:
        """Train to the end, evaluate, export, report.

        Raises:
            Interrupted: `stop` said so; what was reached is saved.
            LimitReached: a limit of the config was passed; what was reached is saved, and a report is written.
        """
        self.run.resume(self.learner)
        if self.world.main:
            self._announce()
        self.world.check_signals(f"step {self.run.step} is saved" if self.run.step else "nothing was trained yet")
        try:
            metrics = fit(self.run, self.learner, stop)
        except LimitReached as limit:
            main_alone(self.world, partial(self._stopped, limit))
            raise
        self.world.check_signals(LATER)
        exported = self.ending.export()
        if self.world.main:
            self._finish(exported, metrics)

    def _stopped(self, limit: LimitReached) -> list[str]:
        """Report what led to a limit; summary.json says which one."""
        folder = self.run.folder
        write_report(folder)
        write_text(folder / "summary.json", json.dumps({"stopped": str(limit), "step": self.run.step}, indent=1) + "\n")
        return []

    def _announce(self) -> None:
        config, world, run = self.config, self.world, self.run
        whole, trained = self.engine.parameter_counts()
        mode = f" ({describe_parallel(config.parallel)})" if world.size > 1 else ""
        say(
            f"{config.model.path}: {whole / 1e6:.1f} M weights, {trained / 1e6:.1f} M trained, {config.model.dtype}, "
            f"{world.size} x {world.device.type}{mode}, {describe(world.device, config.model.kernels)}; "
            f"{self.learner.total:,} steps of {self.size}"
        )
        say(choices_line(config, world.device))
        if run.step:
            say(f"resumed from step {run.step} in {run.folder}")
        for line in (*(() if run.step else self.beginning()), *self.notes):
            say(line)

    def _finish(self, exported: Sequence[str], metrics: Mapping[str, Any]) -> None:
        folder = self.run.folder
        for line in exported:
            say(line)
        write_report(folder)
        skipped = read_run(folder).skipped
        say("\n".join(["", *filter(None, [skipped_line(skipped)]), self.ending.summary(metrics)]))
        figures = {**metrics, "skipped_steps": len(skipped), "backends": choices(self.config, self.world.device)}
        write_text(folder / "summary.json", json.dumps(finite_or_null(figures), indent=1) + "\n")


def train_in_folder(config: Config, put_together: Callable[[World], Training]) -> None:
    """Train as a config says, in a folder that this job holds. All ranks call it.

    Raises:
        UserError: before anything is written to the run folder.
        RunError: a run that cannot go on.
        Interrupted: a run that was asked to stop.
    """
    world = open_world(config)
    with world:
        train_held(config, world, put_together)


def train_held(
    config: Config, world: World, put_together: Callable[[World], Training], stop: StopRequest | None = None
) -> None:
    """The same, with processes that are there already.

    Args:
        stop: of a run that this one is a part of; without one, `stop` in the run folder.
    """
    path = run_folder(config.run.dir)
    held = RunFolder(path, world, config.parallel.lock_minutes)
    listens = listening(path, world) if stop is None else contextlib.nullcontext(stop)
    with held as folder, listens as asked:
        training = put_together(world)
        if config.run.resume == "never":
            folder.move_earlier()
        folder.saver = training.run.saver
        training.train(asked)
