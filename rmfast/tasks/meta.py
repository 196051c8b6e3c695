"""task: meta. Trains a reward model with MetaRM (Part II, algorithm 1), so that it keeps telling samples apart.

A step raises the difference loss J of a batch of prompts with samples of a shifted distribution, takes the gradient of
the preference pairs' loss at the weights that this leads to, and applies it to the weights before.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.config import Config
from rmfast.data.loader import Step, StepLoader
from rmfast.data.plan import StepPlan
from rmfast.data.table import GroupTable
from rmfast.models.config import decoder_config
from rmfast.objectives.meta import SUMS, DifferenceObjective
from rmfast.objectives.reward import Statistics
from rmfast.parallel.world import World
from rmfast.tasks.inputs import open_inputs, open_world
from rmfast.tasks.prepare import data_key, group_counts, make_table, open_stores
from rmfast.tasks.reward import RewardRun, run_in
from rmfast.tasks.run_folder import RunFolder, run_folder
from rmfast.trainer.log import say
from rmfast.trainer.loop import Progress, seed_dropout


def run(config: Config) -> None:
    """Train as the config says. All ranks call it.

    Raises:
        UserError: before anything is written to the run folder.
        RunError: a run that cannot go on.
        Interrupted: a run that was asked to stop.
    """
    world = open_world(config)
    with world, RunFolder(run_folder(config.run.dir), world) as folder:
        run_in(folder, MetaRun(config, world, *open_inputs(config, world)))


class MetaRun(RewardRun):
    """A reward model's run whose steps begin with an ascent on the difference loss."""

    def __init__(
        self,
        config: Config,
        world: World,
        hf: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        table: GroupTable,
        evals: dict[str, GroupTable],
    ) -> None:
        meta = config.meta
        stores = open_stores(meta.data, tokenizer, config.data, world, split="train", samples=meta.k)
        vocabulary = decoder_config(hf, config.model.path).vocabulary
        self.prompts = make_table(stores, config.data, vocabulary, "meta", world, need_edges=False)
        self.prompt_plan = StepPlan(
            group_counts(self.prompts),
            [1.0] * len(stores),
            groups_per_step=meta.prompts_per_step or config.data.pairs_per_step,
            # Another order than that of the pairs, which may stand in the same rows; no other run's seed.
            seed=config.run.seed + 2**31,
            shuffle=config.data.shuffle,
        )
        super().__init__(config, world, hf, tokenizer, table, evals)

    def loader(self, first: int) -> StepLoader:
        """See `RewardRun`; each step brings its share of prompts."""
        loader = super().loader(first)
        loader.meta = self.steps_of(self.prompts, self.prompt_plan, first)
        return loader

    def step_function(self) -> Callable[[Step], Statistics]:
        """MetaRM's step, up to the gradients."""
        meta, engine, rank, seed = self.config.meta, self.engine, self.engine.data.rank, self.config.run.seed
        difference = DifferenceObjective(normaliser=meta.normaliser, impl=self.config.model.kernels)
        pairs = super().step_function()

        def compute(step: Step) -> Statistics:
            assert step.meta is not None
            packs, totals = step.meta.packs, step.meta.totals
            seed_dropout(seed, step.number, rank, 1)
            figures = dict(zip(SUMS, engine.forward_backward(packs, difference, totals).sums, strict=True))
            figures["difference_grad_norm"] = engine.perturb(eta=meta.eta, rho=meta.rho)
            if meta.check_every and step.number % meta.check_every == 0:
                seed_dropout(seed, step.number, rank, 1)  # the masks of J before
                figures["difference_loss_after"] = engine.measure(packs, difference, totals).sums[0]
            # Those of a step without an ascent.
            seed_dropout(seed, step.number, rank)
            statistics = pairs(step)
            engine.restore()
            return replace(statistics, figures=statistics.figures | figures)

        return compute

    def _announce(self, progress: Progress) -> None:
        super()._announce(progress)
        meta = self.config.meta
        length = f"eta {meta.eta:g}" if meta.rho is None else f"length {meta.rho:g}"
        say(f"MetaRM: {self.prompt_plan.groups_per_step} prompts of up to {meta.k} samples a step, ascent of {length}")

    def _settings(self) -> dict[str, Any]:
        meta = self.config.meta
        kept = {f"meta.{key}": getattr(meta, key) for key in ("k", "eta", "rho", "normaliser")}
        return super()._settings() | kept | {"meta.prompts_per_step": self.prompt_plan.groups_per_step}

    def _data_key(self) -> str:
        own = data_key(self.prompts, self.config.data, self.config.run.seed)
        return hashlib.sha256(f"{super()._data_key()} {own}".encode()).hexdigest()
