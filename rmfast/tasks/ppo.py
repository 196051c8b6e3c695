"""task: ppo. Trains a policy against a reward model (Secrets of RLHF, Part I)."""

import hashlib
from pathlib import Path
from typing import Any

from rmfast.config import Config
from rmfast.data.plan import StepPlan
from rmfast.errors import UserError
from rmfast.parallel.world import World
from rmfast.rollout.policy import end_ids
from rmfast.tasks.build.folder import run_folder
from rmfast.tasks.build.inputs import Inputs, open_prompts, total_steps
from rmfast.tasks.build.policy import ModelBuilder
from rmfast.tasks.build.policy_export import PolicyExport
from rmfast.tasks.build.ppo_ending import PPOEnding
from rmfast.tasks.build.ppo_learner import ppo_learner, rollouts_of
from rmfast.tasks.build.ppo_phases import memory_lines, ppo_phases
from rmfast.tasks.build.ppo_prompts import prompt_texts
from rmfast.tasks.build.ppo_words import beginning, notes
from rmfast.tasks.build.ptx import ptx_of, ptx_table
from rmfast.tasks.build.run import kept_settings, open_run
from rmfast.tasks.build.tables import data_key, group_counts
from rmfast.tasks.build.training import Training, train_in_folder
from rmfast.trainer.ppo.prompts import Prompts


def run(config: Config) -> None:
    """Train as the config says; see `train_in_folder`."""
    train_in_folder(config, lambda world: open_ppo(config, world, open_prompts(config, world)))


def open_ppo(config: Config, world: World, inputs: Inputs) -> Training:
    """A run of PPO, ready to begin."""
    ppo, seed = config.ppo, config.run.seed
    plan = StepPlan(
        group_counts(inputs.table),
        [1.0] * len(inputs.table.stores),
        groups_per_step=ppo.prompts_per_step,
        seed=seed,
        shuffle=config.data.shuffle,
    )
    total = config.run.max_steps or total_steps(plan, config.run.epochs)
    if (warmup := ppo.critic_warmup or 0) >= total:
        raise UserError(f"ppo.critic_warmup: {warmup} leaves the policy none of the {total} steps of run.epochs")
    settings = kept_settings(config) | {f"ppo.{key}": value for key, value in _kept(config).items()}
    ends, key = end_ids(Path(config.model.path), inputs.hf, inputs.tokenizer), data_key(inputs.table, config.data, seed)
    if (ptx := ptx_table(config, world, inputs)) is not None:
        key = hashlib.sha256(f"{key} {data_key(ptx, config.data, seed)}".encode()).hexdigest()
    run = open_run(config, world, inputs, settings=settings, data_key=key, policy_ends=ends)
    builder = ModelBuilder(config, world, inputs, ends)
    models = builder.models()
    texts, held_out = prompt_texts(config, inputs, models)
    rollouts = rollouts_of(config, world, inputs, ends, run_folder(config.run.dir) / "rollouts")
    mixed = None if ptx is None else ptx_of(config, ptx, models.policy, total)
    learner = ppo_learner(
        config, inputs, Prompts(inputs.table, plan, texts), rollouts, models, total, mixed,
        builder.folders.critic_units(), ppo_phases(config, world, models), held_out,
    )  # fmt: skip
    return Training(
        config=config,
        world=world,
        engine=models.policy,
        learner=learner,
        run=run,
        ending=PPOEnding(
            exports=PolicyExport(config=config, world=world, inputs=inputs, ends=ends),
            learner=learner,
            folder=run.folder,
            critic_path=builder.folders.critic_path(),
        ),
        size=f"{ppo.prompts_per_step} prompts with {ppo.samples} answers",
        beginning=lambda: beginning(config, inputs, ends, models.reward.names),
        notes=(*memory_lines(config, world, models), *notes(config, inputs, ends)),
    )


def _kept(config: Config) -> dict[str, Any]:
    """Keys of ppo that a resumed run must not change; those of data are the data key's."""
    free = ("eval_prompts", "gold", "offload", "prompts", "ptx_data", "stop_kl", "stop_entropy", "stop_cut")
    kept = {key: value for key, value in config.dump()["ppo"].items() if key not in free}
    return kept | {"reference": config.ppo.reference or config.model.path}  # which null means
