"""A run: its folder, how it is resumed (tasks say what must not change), its log, evaluations and checkpoints."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmfast.checkpoint.saver import MOST_FAILURES, Saver
from rmfast.checkpoint.store import open_checkpoint, read_manifest
from rmfast.checkpoint.whole import newest_whole
from rmfast.console import say
from rmfast.data.files import write_text
from rmfast.errors import PeerError, RunError, UserError
from rmfast.outputs.lock import check_held
from rmfast.outputs.marks import CONFIG, config_text
from rmfast.parallel.agree import all_or_none
from rmfast.parallel.engine import tensor_name
from rmfast.parallel.world import World
from rmfast.trainer.learner import Learner
from rmfast.trainer.log import RunLog

LAST_PAUSES = (2.0, 10.0)
"""Seconds before each further try to write a checkpoint that is waited for."""
ELSE = "set run.resume to never (moves it), or choose another run.dir"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run does beside its steps, counted in steps; None for never.

    Args:
        evaluate_every: of each kind of evaluation; `evaluate_first`: also before the first step.
        checkpoint_every: beside the checkpoint of the last step; the newest `keep` stay.
        max_skipped: steps in a row that may be left out because their figures are not finite; 0 for none.
        log_every: between lines of the console.
    """

    evaluate_every: tuple[int | None, ...]
    evaluate_first: bool
    checkpoint_every: int | None
    keep: int
    max_skipped: int
    log_every: int
    tensorboard: bool
    wandb: bool


class Run:
    """A run in its folder. All ranks make one and call the same methods; rank 0 writes.

    Args:
        config: resolved, of which config.yaml is made.
        settings: what a resumed run must not change, by key; data_key tells data, order and seed apart.
        write_extras: writes what makes a checkpoint a model (config, tokenizer).
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        options: RunOptions,
        *,
        config: dict[str, Any],
        settings: Mapping[str, Any],
        data_key: str,
        write_extras: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.folder, self.world, self.options = folder, world, options
        self.config, self.settings, self.data_key = config, dict(settings), data_key
        self.saver = Saver(
            folder / "checkpoints", world, extras=write_extras, keep=options.keep, before=self._flush_log
        )
        self.step = 0
        self.owes_evaluation = False  # after `step`: the run was asked to stop when it was due
        self.log: RunLog | None = None

    def resume(self, learner: Learner) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            UserError: it is of a run with other settings, data or weights; there are some, and none is whole.
        """
        found = newest_whole(self.folder / "checkpoints", self.world)
        for line in found.lines() if self.world.main else ():
            say(line)
        if found.path is None:
            return
        newest = found.path
        saved = read_manifest(newest)["progress"]
        for key, value in self.settings.items():
            before = saved["settings"].get(key, value)
            if before != value:
                raise UserError(
                    f"{newest}: this run began with {key} {before}, now it is {value}; go back, set "
                    "run.resume to never (moves the run), or choose another run.dir"
                )
        if saved["data_key"] != self.data_key:
            raise UserError(f"{newest}: holds a run on other data, order or seed; {ELSE}")
        if saved["step"] > learner.total:
            raise UserError(
                f"{newest}: is at step {saved['step']}, beyond this run's {learner.total}; raise run.max_steps"
            )
        with open_checkpoint(newest) as (read, shapes):
            state = learner.state()
            other = [n for key, shard in state.items() if shapes.get(n := tensor_name(key), ()) != shard.shape]
            # Ranks may hold different weights, and go on together or not at all.
            if self.world.sum_(torch.tensor(float(len(other)))):
                raise UserError(
                    f"{newest}: holds another model or other trained weights ({(other or ['one'])[0]} differs); {ELSE}"
                )
            learner.load_state(read)
        learner.counters |= {name: saved[name] for name in learner.counters}
        self.step, self.owes_evaluation = saved["step"], saved.get("owes_evaluation", False)
        self.saver.safe, self.saver.damaged = self.step, set(found.damaged)

    def save(self, learner: Learner, *, last: bool = False) -> None:
        """Begin to write a checkpoint of the step that was just done.

        Args:
            last: wait until it is written, for the run ends; it is tried a few times. So is one after
                `MOST_FAILURES` that could not be written.

        Raises:
            RunError: one that is waited for cannot be written; another process has taken the folder over.
        """
        all_or_none(self.world, lambda: check_held(self.folder))
        if not last or self.saver.begun != self.step:  # a step that ends before it learns leaves the one before it
            self._begin_to_save(learner)
        if not last and self.saver.failures < MOST_FAILURES:
            return
        for pause in LAST_PAUSES:
            if not self.saver.wait():
                return
            time.sleep(pause)
            self._begin_to_save(learner)
        if failure := self.saver.wait():
            kind = RunError if self.world.main else PeerError
            raise kind(f"{failure}; make room or mend it, and the same command on the same run.dir goes on from there")

    def _begin_to_save(self, learner: Learner) -> None:
        values = {"step": self.step, **learner.counters, "owes_evaluation": self.owes_evaluation}
        about = {"data_key": self.data_key, "settings": self.settings}
        self.saver.save(self.step, learner.state(), values | about)

    def _flush_log(self) -> None:
        check_held(self.folder)
        if self.log is not None:
            self.log.sync()

    def due(self, step: int) -> bool:
        """Whether something is to be evaluated after that many steps."""
        return any(every is not None and step % every == 0 for every in self.options.evaluate_every)

    def evaluate(self, learner: Learner, final: bool = False) -> dict[str, Any]:
        """Evaluate what is due after the steps so far, log it and keep what is to be kept.

        Returns:
            All metrics, with their prefixes.
        """
        merged: dict[str, Any] = {}
        for found in learner.evaluate(self.step, final):
            merged |= {f"{found.prefix}{key}": value for key, value in found.metrics.items()}
            if self.log is not None:
                metrics = {f"eval_{key}": value for key, value in found.metrics.items()}
                self.log.evaluation(self.step, found.name, metrics, line=found.text)
                if found.keep is not None:
                    (self.folder / "eval").mkdir(exist_ok=True)
                    found.keep(self.folder / "eval")
        return merged

    @contextlib.contextmanager
    def logging(self, total: int) -> Iterator[None]:
        """Write config.yaml and keep the log open, on rank 0.

        Args:
            total: steps of the run.
        """
        if self.world.main:
            options = self.options
            write_text(self.folder / CONFIG, config_text(self.config))
            self.log = RunLog(
                self.folder,
                last_step=self.step,
                total=total,
                every=options.log_every,
                tensorboard=options.tensorboard,
                wandb=options.wandb,
                config=self.config,
            )
        try:
            yield
        finally:
            self.saver.leave()
            if self.log is not None:
                self.log.close()
                self.log = None
