"""task: sft. Trains a language model on demonstrations, evaluates it, exports it and writes the report."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmfast.config import Config
from rmfast.data.tail import answer_end
from rmfast.objectives.lm import SFTObjective
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.report.summary import sft_summary
from rmfast.rollout.policy import end_ids
from rmfast.tasks.build.adapter import export_adapter, lora_lines
from rmfast.tasks.build.engine import open_engine
from rmfast.tasks.build.inputs import Inputs, open_demonstrations, step_plan
from rmfast.tasks.build.policy_export import PolicyExport
from rmfast.tasks.build.run import kept_settings, loader_of, open_run, rates, work_of
from rmfast.tasks.build.tables import data_key
from rmfast.tasks.build.training import Training, train_in_folder
from rmfast.trainer.batch_learner import BatchLearner
from rmfast.trainer.held_out import table_prefix
from rmfast.trainer.held_out_demonstrations import HeldOutDemonstrations


def run(config: Config) -> None:
    """Train as the config says; see `train_in_folder`."""
    train_in_folder(config, lambda world: open_sft(config, world, open_demonstrations(config, world)))


def open_sft(config: Config, world: World, inputs: Inputs) -> Training:
    """A run of supervised fine-tuning, ready to begin."""
    settings = kept_settings(config) | {"sft.turns": config.sft.turns}
    key = data_key(inputs.table, config.data, config.run.seed)
    ends = _ends(config, inputs)
    run = open_run(config, world, inputs, settings=settings, data_key=key, policy_ends=ends)
    engine = open_engine(config, world, inputs.hf)
    return Training(
        config=config,
        world=world,
        engine=engine,
        learner=_learner(config, world, inputs, engine),
        run=run,
        ending=SFTEnding(
            exports=PolicyExport(config=config, world=world, inputs=inputs, ends=ends),
            engine=engine,
            folder=run.folder,
        ),
        size=f"{config.data.pairs_per_step} demonstrations",
        beginning=tuple,
        notes=lora_lines(config, engine, world),
    )


def _learner(config: Config, world: World, inputs: Inputs, engine: Engine) -> BatchLearner:
    plan, total = step_plan(config, inputs.table)
    return BatchLearner(
        engine,
        SFTObjective(),
        loader_of(config, engine, inputs.table, plan, total, predicts="targets"),
        HeldOutDemonstrations(tables=inputs.evals, every=config.eval.every, budget=config.data.tokens_per_pack),
        rate=rates(config.optim, total),
        work=work_of(config, world, inputs),
        seed=config.run.seed,
        unit="rows",
    )


def _ends(config: Config, inputs: Inputs) -> Collection[int]:
    """Ids that end an answer of the trained model: those of the one before, and what closes the answers it learnt."""
    ends = end_ids(Path(config.model.path), inputs.hf, inputs.tokenizer)
    learnt = any(store.meta["has_messages"] for store in inputs.table.stores)
    closes = answer_end(inputs.tokenizer) if learnt else None
    return ends if closes is None else ends | {closes}


@dataclass(frozen=True, kw_only=True)
class SFTEnding:
    """A language model in `folder/model`, and its perplexity on the first held-out source; an adapter in
    `folder/adapter`, beside the model that it is merged into."""

    exports: PolicyExport
    engine: Engine
    folder: Path

    def export(self) -> Sequence[str]:
        """See `Ending`."""
        exports, adapter = self.exports, self.engine.adapter()
        lines = exports.write(self.engine, self.folder / "model")
        return lines + export_adapter(exports.config, exports.inputs, adapter, self.folder, exports.ends)

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """See `Ending`."""
        evals, data = self.exports.inputs.evals, self.exports.config.data
        prefix = table_prefix(next(iter(evals), ""))
        held_out = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        return sft_summary(
            held_out or None,
            model=self.folder / "model",
            report=self.folder / "report",
            checkpoints=self.folder / "checkpoints",
            data=(data.eval or data.train)[0],
        )
