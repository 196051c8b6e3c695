"""What trainings of reward models have in common: how they begin, and how they end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rmfast.checkpoint.export import ModelParts, publish_model, rows_to_check
from rmfast.config import Config
from rmfast.data.pack import build_pack
from rmfast.models.config import DTYPES
from rmfast.parallel.agree import main_alone
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.report.summary import final_summary
from rmfast.tasks.build.adapter import export_adapter, lora_lines
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.model import head_line
from rmfast.tasks.build.training import Training
from rmfast.trainer.held_out import table_prefix
from rmfast.trainer.learner import Learner
from rmfast.trainer.run import Run


@dataclass(frozen=True, kw_only=True)
class RewardEnding:
    """A reward model in `folder/model`, and its accuracy on the first held-out source; an adapter in `folder/adapter`,
    beside the model that it is merged into."""

    config: Config
    world: World
    inputs: Inputs
    engine: Engine
    folder: Path

    def export(self) -> Sequence[str]:
        """See `Ending`."""
        weights, adapter = self.engine.weights(), self.engine.adapter()
        table = next(iter(self.inputs.evals.values()), self.inputs.table)
        rows = rows_to_check(table)
        scores = self.engine.score([build_pack(table, rows)])[0].float().cpu()
        sequences = [s for row in rows for s in table.sequences_of(int(row))]
        return main_alone(self.world, lambda: self._write(weights, adapter, sequences, scores))

    def _write(
        self, weights: dict[str, Tensor], adapter: dict[str, Tensor], sequences: list[list[int]], scores: Tensor
    ) -> list[str]:
        model, inputs, dtype = self.folder / "model", self.inputs, DTYPES[self.config.model.dtype]
        difference = publish_model(
            model,
            ModelParts(inputs.hf, inputs.decoder, weights, inputs.tokenizer, dtype, inputs.ends, bool(adapter)),
            sequences=sequences,
            scores=scores,
        )
        line = f"exported {model}; transformers gives the same scores (largest difference {difference:.0e})"
        return [line, *export_adapter(self.config, inputs, adapter, self.folder, inputs.ends)]

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """See `Ending`."""
        prefix, sources = table_prefix(next(iter(self.inputs.evals), "")), self.config.data.eval
        held_out = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        return final_summary(
            held_out or None,
            model=self.folder / "model",
            report=self.folder / "report",
            checkpoints=self.folder / "checkpoints",
            data=sources[0] if sources else None,
        )


def reward_training(
    config: Config,
    world: World,
    inputs: Inputs,
    engine: Engine,
    learner: Learner,
    run: Run,
    notes: tuple[str, ...] = (),
) -> Training:
    """A training of a reward model, ready to begin."""
    return Training(
        config=config,
        world=world,
        engine=engine,
        learner=learner,
        run=run,
        ending=RewardEnding(config=config, world=world, inputs=inputs, engine=engine, folder=run.folder),
        size=f"{config.data.pairs_per_step} groups",
        beginning=lambda: (head_line(config, inputs.hf, inputs.tokenizer),),
        notes=(*lora_lines(config, engine, world), *notes),
    )
