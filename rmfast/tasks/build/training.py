"""A training run put together: its engine, learner and run, from the first line to the published model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rmfast.checkpoint.export import publish_model, rows_to_check
from rmfast.config import Config
from rmfast.console import say
from rmfast.data.files import write_text
from rmfast.data.pack import build_pack
from rmfast.jsonio import finite_or_null
from rmfast.kernels import describe
from rmfast.models.config import DTYPES
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.report.html import write_report
from rmfast.report.summary import final_summary
from rmfast.tasks.build.choices import choices, choices_line
from rmfast.tasks.build.engine import describe_parallel
from rmfast.tasks.build.folder import RunFolder, run_folder
from rmfast.tasks.build.inputs import Inputs, open_inputs, open_world
from rmfast.tasks.build.model import head_line
from rmfast.trainer.held_out import table_prefix
from rmfast.trainer.learner import Learner
from rmfast.trainer.loop import fit
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest, listening


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a task trains, ready to begin. `notes` are lines that a run begins with."""

    config: Config
    world: World
    inputs: Inputs
    engine: Engine
    learner: Learner
    run: Run
    notes: tuple[str, ...] = ()

    def train(self, stop: StopRequest | None = None) -> None:
        """Train to the end, evaluate, export, report.

        Raises:
            Interrupted: `stop` said so; what was reached is saved.
        """
        self.run.resume(self.learner)
        if self.world.main:
            self._announce()
        self._publish(fit(self.run, self.learner, stop))

    def _announce(self) -> None:
        config, world, run = self.config, self.world, self.run
        whole, trained = self.engine.parameter_counts()
        mode = f" ({describe_parallel(config.parallel)})" if world.size > 1 else ""
        say(
            f"{config.model.path}: {whole / 1e6:.1f} M weights, {trained / 1e6:.1f} M trained, {config.model.dtype}, "
            f"{world.size} x {world.device.type}{mode}, {describe(world.device, config.model.kernels)}; "
            f"{self.learner.total:,} steps of {config.data.pairs_per_step} groups"
        )
        say(choices_line(config, world.device))
        if run.step:
            say(f"resumed from step {run.step} in {run.folder}")
        else:
            say(head_line(config, self.inputs.hf, self.inputs.tokenizer))
        for note in self.notes:
            say(note)

    def _publish(self, metrics: dict[str, Any]) -> None:
        """Export, prove that transformers agrees, and write the report."""
        weights = self.engine.weights()
        table = next(iter(self.inputs.evals.values()), self.inputs.table)
        rows = rows_to_check(table)
        scores = self.engine.score([build_pack(table, rows)])[0].float().cpu()
        if not self.world.main:
            return
        folder, run = self.run.folder, self.run
        difference = publish_model(
            folder / "model",
            hf=self.inputs.hf,
            config=self.inputs.decoder,
            state=weights,
            tokenizer=self.inputs.tokenizer,
            dtype=DTYPES[self.config.model.dtype],
            ends=self.inputs.ends,
            sequences=[s for row in rows for s in table.sequences_of(int(row))],
            scores=scores,
        )
        say(f"exported {folder / 'model'}; transformers gives the same scores (largest difference {difference:.0e})")
        write_report(folder)
        prefix = table_prefix(next(iter(self.inputs.evals), ""))
        held_out = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        summary = final_summary(
            held_out or None,
            model=folder / "model",
            report=folder / "report",
            checkpoints=folder / "checkpoints",
            data=self.config.data.eval[0] if self.config.data.eval else None,
        )
        say("\n" + summary)
        figures = metrics | {"backends": choices(self.config, self.world.device)}
        write_text(run.folder / "summary.json", json.dumps(finite_or_null(figures), indent=1) + "\n")


def train_in_folder(config: Config, put_together: Callable[[Config, World, Inputs], Training]) -> None:
    """Train as a config says, in a folder that this job holds. All ranks call it.

    Raises:
        UserError: before anything is written to the run folder.
        RunError: a run that cannot go on.
        Interrupted: a run that was asked to stop.
    """
    world = open_world(config)
    with world, RunFolder(run_folder(config.run.dir), world) as folder:
        training = put_together(config, world, open_inputs(config, world))
        if config.run.resume == "never":
            folder.move_earlier()
        with listening(folder.path, world) as stop:
            training.train(stop)
