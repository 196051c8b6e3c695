"""task: reward. Trains a reward model, evaluates it, exports it and writes the report."""

from rmfast.config import Config
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.tasks.build.engine import open_engine
from rmfast.tasks.build.inputs import Inputs, step_plan
from rmfast.tasks.build.objective import reward_objective, training_views
from rmfast.tasks.build.run import held_out_of, kept_settings, loader_of, open_run, rates, work_of
from rmfast.tasks.build.tables import data_key
from rmfast.tasks.build.training import Training, train_in_folder
from rmfast.trainer.pair_learner import PairLearner


def run(config: Config) -> None:
    """Train as the config says; see `train_in_folder`."""
    train_in_folder(config, open_reward)


def open_reward(config: Config, world: World, inputs: Inputs) -> Training:
    """A reward run, ready to begin."""
    settings, key = kept_settings(config), data_key(inputs.table, config.data, config.run.seed)
    run = open_run(config, world, inputs, settings=settings, data_key=key)
    engine = open_engine(config, world, inputs.hf)
    learner = pair_learner(config, world, inputs, engine)
    return Training(config=config, world=world, inputs=inputs, engine=engine, learner=learner, run=run)


def pair_learner(config: Config, world: World, inputs: Inputs, engine: Engine) -> PairLearner:
    """What learns from the training table's pairs."""
    plan, total = step_plan(config, inputs.table)
    lm, views = config.objective.lm > 0, training_views(config)
    return PairLearner(
        engine,
        reward_objective(config, inputs.decoder.width, engine.data),
        loader_of(config, engine, inputs.table, plan, total, lm=lm, views=views),
        held_out_of(config, world, inputs),
        rate=rates(config.optim, total),
        work=work_of(config, world, inputs),
        seed=config.run.seed,
    )
