"""A run: its folder, how it is resumed (tasks say what must not change), its log, evaluations and checkpoints."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmfast.checkpoint.store import list_checkpoints, open_checkpoint, read_manifest, save_checkpoint
from rmfast.data.files import write_text
from rmfast.errors import UserError
from rmfast.outputs.marks import CONFIG, config_text
from rmfast.parallel.engine import tensor_name
from rmfast.parallel.world import World
from rmfast.trainer.learner import Learner
from rmfast.trainer.log import RunLog

ELSE = "set run.resume to never (moves it), or choose another run.dir"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run does beside its steps, counted in steps; None for never.

    Args:
        evaluate_every: of each kind of evaluation; `evaluate_first`: also before the first step.
        checkpoint_every: beside the checkpoint of the last step; the newest `keep` stay.
        stop_on_nonfinite: where a step's figures are not finite; else it is left out.
        log_every: between lines of the console.
    """

    evaluate_every: tuple[int | None, ...]
    evaluate_first: bool
    checkpoint_every: int | None
    keep: int
    stop_on_nonfinite: bool
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
        self.write_extras = write_extras
        self.step = 0
        self.owes_evaluation = False  # after `step`: the run was asked to stop when it was due
        self.log: RunLog | None = None

    def resume(self, learner: Learner) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            UserError: it is of a run with other settings, data or weights; it cannot be read.
        """
        checkpoints = list_checkpoints(self.folder / "checkpoints")
        if not checkpoints:
            return
        newest = checkpoints[-1]
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

    def save(self, learner: Learner) -> None:
        """Write a checkpoint of the step that was just done."""
        values = {"step": self.step, **learner.counters, "owes_evaluation": self.owes_evaluation}
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            learner.state(),
            values | {"data_key": self.data_key, "settings": self.settings},
            self.world,
            write_extras=self.write_extras,
            keep=self.options.keep,
        )

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
            if self.log is not None:
                self.log.close()
                self.log = None
