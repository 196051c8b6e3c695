"""From a config of PPO to the demonstrations that its policy learns beside."""

from rmfast.config import Config
from rmfast.data.plan import StepPlan
from rmfast.data.row_kinds import demonstrations
from rmfast.data.table import GroupTable
from rmfast.parallel.engine import Engine
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.run import loader_of
from rmfast.tasks.build.tables import group_counts, make_table, open_stores
from rmfast.trainer.ppo.ptx import Ptx


def ptx_table(config: Config, world: World, inputs: Inputs) -> GroupTable | None:
    """The table of ppo.ptx_data, on all ranks; None without demonstrations."""
    if not config.ppo.ptx:
        return None
    kind = demonstrations(config.sft.turns)
    stores = open_stores(config.ppo.ptx_data, inputs.tokenizer, config.data, world, split="train", kind=kind)
    return make_table(stores, config.data, inputs.decoder.vocabulary, "ptx", world, kind=kind)


def ptx_of(config: Config, table: GroupTable, policy: Engine, steps: int) -> Ptx:
    """Batches of demonstrations for the updates of so many steps."""
    ppo = config.ppo
    plan = StepPlan(
        group_counts(table),
        [1.0] * len(table.stores),
        groups_per_step=ppo.ptx_rows,
        # Another order than that of the prompts, which may be in the same rows; no other run's seed.
        seed=config.run.seed + 2**31,
        shuffle=config.data.shuffle,
    )
    updates = steps * (ppo.epochs or 1) * (ppo.minibatches or 1)
    return Ptx(loader_of(config, policy, table, plan, updates, predicts="targets"), ppo.ptx)
