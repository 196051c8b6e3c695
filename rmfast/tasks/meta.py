"""task: meta. Trains a reward model with MetaRM (Part II, algorithm 1), so that it keeps telling samples apart."""

import hashlib

from rmfast.config import Config
from rmfast.data.plan import StepPlan
from rmfast.data.row_kinds import samples
from rmfast.objectives.meta import DifferenceObjective
from rmfast.parallel.world import World
from rmfast.tasks.build.engine import open_engine
from rmfast.tasks.build.inputs import Inputs, open_inputs
from rmfast.tasks.build.reward_training import reward_training
from rmfast.tasks.build.run import kept_settings, loader_of, open_run
from rmfast.tasks.build.tables import data_key, group_counts, make_table, open_stores
from rmfast.tasks.build.training import Training, train_in_folder
from rmfast.tasks.reward import pair_learner
from rmfast.trainer.meta_learner import MetaLearner


def run(config: Config) -> None:
    """Train as the config says; see `train_in_folder`."""
    train_in_folder(config, lambda world: open_meta(config, world, open_inputs(config, world)))


def open_meta(config: Config, world: World, inputs: Inputs) -> Training:
    """A MetaRM run, ready to begin."""
    meta, data, seed = config.meta, config.data, config.run.seed
    kind = samples(meta.k)
    stores = open_stores(meta.data, inputs.tokenizer, data, world, split="train", kind=kind)
    prompts = make_table(stores, data, inputs.decoder.vocabulary, "meta", world, kind=kind)
    plan = StepPlan(
        group_counts(prompts),
        [1.0] * len(stores),
        groups_per_step=meta.prompts_per_step or data.pairs_per_step,
        # Another order than that of the pairs, which may be in the same rows; no other run's seed.
        seed=seed + 2**31,
        shuffle=data.shuffle,
    )
    settings = kept_settings(config) | {f"meta.{key}": getattr(meta, key) for key in ("k", "eta", "rho", "normaliser")}
    keys = " ".join(data_key(table, data, seed) for table in (inputs.table, prompts))
    run = open_run(
        config,
        world,
        inputs,
        settings=settings | {"meta.prompts_per_step": plan.groups_per_step},
        data_key=hashlib.sha256(keys.encode()).hexdigest(),
    )
    engine = open_engine(config, world, inputs.hf)
    pairs = pair_learner(config, world, inputs, engine)
    learner = MetaLearner(
        pairs,
        loader_of(config, engine, prompts, plan, pairs.total),
        DifferenceObjective(normaliser=meta.normaliser, impl=config.model.kernels),
        eta=meta.eta,
        rho=meta.rho,
        check_every=meta.check_every,
    )
    length = f"eta {meta.eta:g}" if meta.rho is None else f"length {meta.rho:g}"
    note = f"MetaRM: {plan.groups_per_step} prompts of up to {meta.k} samples a step, ascent of {length}"
    return reward_training(config, world, inputs, engine, learner, run, (note,))
