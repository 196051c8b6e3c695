"""task: reward. Trains a reward model, evaluates it, exports it and writes the report."""

from rmfast.config import Config
from rmfast.data.pack import Predicts
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.tasks.build.engine import open_engine
from rmfast.tasks.build.inputs import Inputs, open_inputs, step_plan
from rmfast.tasks.build.objective import reward_objective, training_views
from rmfast.tasks.build.reward_training import reward_training
from rmfast.tasks.build.run import held_out_of, kept_settings, loader_of, open_run, rates, work_of
from rmfast.tasks.build.tables import data_key
from rmfast.tasks.build.training import Training, train_in_folder
from rmfast.trainer.batch_learner import BatchLearner


def run(config: Config) -> None:
    """Train as the config says; see `train_in_folder`."""
    train_in_folder(config, lambda world: open_reward(config, world, open_inputs(config, world)))


def open_reward(config: Config, world: World, inputs: Inputs) -> Training:
    """A reward run, ready to begin."""
    settings, key = kept_settings(config), data_key(inputs.table, config.data, config.run.seed)
    run = open_run(config, world, inputs, settings=settings, data_key=key)
    engine = open_engine(config, world, inputs.hf)
    return reward_training(config, world, inputs, engine, pair_learner(config, world, inputs, engine), run)


def pair_learner(config: Config, world: World, inputs: Inputs, engine: Engine) -> BatchLearner:
    """What learns from the training table's pairs."""
    plan, total = step_plan(config, inputs.table)
    predicts: Predicts | None = "chosen" if config.objective.lm else None
    return BatchLearner(
        engine,
        reward_objective(config, inputs.decoder.width, engine.data),
        loader_of(config, engine, inputs.table, plan, total, predicts=predicts, views=training_views(config)),
        held_out_of(config, world, inputs),
        rate=rates(config.optim, total),
        work=work_of(config, world, inputs),
        seed=config.run.seed,
    )
