"""From a config to a learner of PPO."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from rmfast.config import Config
from rmfast.data.example import Example
from rmfast.models.config import context_window
from rmfast.objectives.policy import PolicyObjective, ValueObjective
from rmfast.parallel.world import World
from rmfast.rollout.free_memory import free_memory
from rmfast.rollout.options import SampleOptions
from rmfast.tasks.build.folder import run_folder
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.run import rates
from rmfast.trainer.ppo.experience import AdvantageOptions
from rmfast.trainer.ppo.held_out import HeldOutPrompts
from rmfast.trainer.ppo.kl import KLCoefficient
from rmfast.trainer.ppo.learner import PPOLearner, PPOOptions
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.phases import Phases
from rmfast.trainer.ppo.prompts import Prompts
from rmfast.trainer.ppo.ptx import Ptx
from rmfast.trainer.ppo.rewards import RewardOptions
from rmfast.trainer.ppo.rollouts import Rollouts
from rmfast.trainer.ppo.watch import Limits


def ppo_learner(
    config: Config,
    inputs: Inputs,
    prompts: Prompts,
    rollouts: Rollouts,
    models: Models,
    total: int,
    ptx: Ptx | None,
    units: tuple[float, float] | None,
    phases: Phases,
    texts: Sequence[Example] = (),
) -> PPOLearner:
    """What learns as a config says.

    Args:
        total: steps. ptx: demonstrations beside the answers.
        units: shift and scale of the critic's values; None: those that scores are normalised by at first.
        texts: of the held-out prompts, where a reward model reads these.
    """
    ppo, budget, impl = config.ppo, config.data.tokens_per_pack, config.model.kernels
    warmup, (shift, scale) = ppo.critic_warmup or 0, units or (0.0, 1.0)
    policy = policy_objective(config, inputs)
    held_out = HeldOutPrompts(
        prompts=[Prompts(table, prompts.plan).ids(row) for table in inputs.evals.values() for row in range(len(table))],
        examples=texts,
        tokenizer=inputs.tokenizer,
        rollouts=replace(rollouts, folder=run_folder(config.run.dir) / "eval" / "rollouts", n=1),
        policy=policy,
        every=config.eval.every,
        budget=budget,
    )
    critic = config.optim.model_copy(update={"lr": ppo.critic_lr or config.optim.lr})
    return PPOLearner(
        models,
        prompts,
        rollouts,
        held_out,
        inputs.tokenizer,
        total=total,
        policy=policy,
        value=ValueObjective(clip=ppo.value_clip or None, shift=shift, scale=scale, impl=impl),
        rewards=RewardOptions(
            max_new_tokens=ppo.max_new_tokens,
            rule=ppo.reward_rule,
            k=ppo.reward_k,
            truncated=ppo.truncated or "zero",
            truncated_score=ppo.truncated_score,
            clip=ppo.reward_clip or 0.0,
            overlong_buffer=ppo.overlong_buffer,
            overlong_penalty=ppo.overlong_penalty,
        ),
        advantages=AdvantageOptions(
            estimator=ppo.advantage,
            gamma=ppo.gamma,
            lam=1.0 if ppo.lam is None else ppo.lam,
            bootstrap=ppo.truncated == "bootstrap",
            whiten=bool(ppo.whiten),
        ),
        options=PPOOptions(
            epochs=ppo.epochs or 1,
            minibatches=ppo.minibatches or 1,
            critic_warmup=warmup,
            normalise=ppo.reward_norm == "running",
            reward_warmup=ppo.reward_warmup or 0,
            rescale=units is None,
            kl_in_reward=ppo.kl_in != "loss",
            kl_in_loss=ppo.kl_in != "reward",
            seed=config.run.seed,
            budget=budget,
        ),
        kl=KLCoefficient(value=ppo.kl, target=ppo.kl_target, horizon=ppo.kl_horizon),
        policy_rate=rates(config.optim, total - warmup),
        critic_rate=rates(critic, total),
        phases=phases,
        ptx=ptx,
        limits=Limits(kl=ppo.stop_kl, entropy=ppo.stop_entropy, cut=ppo.stop_cut),
    )


def policy_objective(config: Config, inputs: Inputs) -> PolicyObjective:
    """The loss of a policy, and how its log-probabilities are read."""
    ppo = config.ppo
    return PolicyObjective(
        clip=ppo.clip,
        clip_high=ppo.clip_high,
        kl_estimator="k3" if ppo.kl_estimator == "k3" else "k2",
        entropy=ppo.entropy,
        temperature=ppo.temperature,
        ids=min(len(inputs.tokenizer), inputs.decoder.vocabulary),
        impl=config.model.kernels,
    )


def rollouts_of(config: Config, world: World, inputs: Inputs, ends: Collection[int], folder: Path) -> Rollouts:
    """What draws answers as a config says. ends: ids that end one. folder: where they are kept."""
    limit = config.rollout.memory
    return Rollouts(
        folder=folder,
        options=sample_options(config),
        n=config.ppo.samples,
        ids=len(inputs.tokenizer),
        ends=ends,
        window=context_window(inputs.hf),
        rows=config.rollout.rows,
        memory=free_memory(world.device) / 2 if limit is None else limit * 1e9,
        tokens_per_pack=config.data.tokens_per_pack,
    )


def sample_options(config: Config) -> SampleOptions:
    """How tokens are drawn: by the config alone."""
    ppo = config.ppo
    return SampleOptions(
        max_new_tokens=ppo.max_new_tokens, temperature=ppo.temperature, top_p=ppo.top_p, top_k=ppo.top_k,
        min_p=ppo.min_p, repetition_penalty=ppo.repetition_penalty, seed=config.run.seed,
    )  # fmt: skip
