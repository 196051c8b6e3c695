"""What the models say of a rollout's tokens, read over the packs that are trained on, and what that makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rmfast.data.pack import Pack
from rmfast.errors import RunError
from rmfast.models.network import Reads
from rmfast.objectives.policy import PolicyObjective, ValueObjective
from rmfast.parallel.engine import Engine
from rmfast.trainer.ppo import advantages as estimators
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.packed import answer_of, sums
from rmfast.trainer.ppo.rewards import Scored, token_rewards, with_bootstrap

Estimator = Literal["gae", "rloo", "grpo", "reinforce"]


@dataclass(frozen=True, kw_only=True)
class AdvantageOptions:
    """How advantages are estimated.

    Args:
        bootstrap: whether the value of the state after a cut answer's last token stands for what was cut.
        whiten: advantages have mean 0 and variance 1 over the rollout's tokens.
    """

    estimator: Estimator
    gamma: float = 1.0
    lam: float = 1.0
    bootstrap: bool = False
    whiten: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Read:
    """What models say of T tokens in B answers, fp64 on the CPU of every rank: log-probability and entropy under the
    policy that sampled, at the sampling temperature; log-probability under the reference; value of the state before
    each token, and of the state after each answer [B]. None without a critic."""

    old_log_prob: Tensor
    entropy: Tensor
    reference: Tensor
    values: Tensor | None = None
    after: Tensor | None = None

    def kl(self, lengths: Tensor) -> Tensor:
        """fp64 [B]: the log-ratio to the reference, summed over each answer."""
        return sums(self.old_log_prob - self.reference, lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Experience:
    """A rollout as it is learnt from; [T] but for `scored`."""

    read: Read
    scored: Scored
    rewards: Tensor
    advantage: Tensor
    returns: Tensor | None
    mask: Tensor

    @property
    def of_policy(self) -> dict[str, Tensor]:
        """Columns that the policy's packs carry."""
        read = self.read
        return {
            "old_log_prob": read.old_log_prob,
            "reference": read.reference,
            "advantage": self.advantage,
            "mask": self.mask,
        }

    @property
    def of_critic(self) -> dict[str, Tensor]:
        """Columns that the critic's packs carry."""
        assert self.read.values is not None and self.returns is not None
        return {"old_value": self.read.values, "returns": self.returns, "mask": self.mask}


def read_log_probs(
    name: str, engine: Engine, packs: Sequence[Pack], answers: Answers, objective: PolicyObjective
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each token [T], as the objective reads them of the same packs; all ranks call it.

    With the weights, packs and kernels that a step begins with, its ratios are exactly 1.

    Args:
        name: of the model, in errors.

    Raises:
        RunError: a log-probability that is not finite.
    """
    found = torch.zeros(2, answers.tokens, dtype=torch.float64)
    for pack, outputs in zip(packs, engine.read(packs, objective.reads), strict=True):
        assert outputs.log_prob is not None and outputs.entropy is not None
        index = torch.from_numpy(answers.index(pack))
        found[:, index] = torch.stack((outputs.log_prob, outputs.entropy)).double().cpu()
    log_prob, entropy = engine.data.sum_(found)
    if not bool(log_prob.isfinite().all()):
        raise RunError(f"{name}: the log-probability of an answer is not finite: its weights are broken")
    return log_prob, entropy


def read_values(
    engine: Engine, packs: Sequence[Pack], answers: Answers, objective: ValueObjective
) -> tuple[Tensor, Tensor]:
    """Values of the state before each token [T] and after each answer [B], as the objective reads them; all ranks call
    it."""
    before, after = (torch.zeros(size, dtype=torch.float64) for size in (answers.tokens, len(answers.lengths)))
    outputs = engine.read(packs, lambda pack: Reads(scores=torch.cat((pack.targets.rows, pack.scored))))
    for pack, output in zip(packs, outputs, strict=True):
        if len(pack.responses):
            tokens = len(pack.targets.rows)
            values = objective.values(output).double().cpu()
            before[torch.from_numpy(answers.index(pack))] = values[:tokens]
            after[torch.from_numpy(pack.responses)] = values[tokens:]
    return engine.data.sum_(before), engine.data.sum_(after)


def experience(answers: Answers, scored: Scored, read: Read, options: AdvantageOptions, *, kl: float) -> Experience:
    """Rewards and advantages of a rollout.

    Args:
        kl: the coefficient of the penalty in the reward, 0 where it is in the loss.
    """
    lengths, kept, groups = answers.lengths, scored.kept, answers.groups
    rewards = token_rewards(scored.scores, lengths, kept, read.old_log_prob, read.reference, kl=kl)
    returns = None
    if options.estimator == "gae":
        assert read.values is not None and read.after is not None
        whole = rewards
        if options.bootstrap:
            whole = with_bootstrap(rewards, lengths, answers.cut, read.after, gamma=options.gamma)
        advantage, returns = estimators.gae(whole, read.values, lengths, kept, gamma=options.gamma, lam=options.lam)
    elif options.estimator == "reinforce":
        advantage = estimators.reinforce(rewards, lengths, kept, gamma=options.gamma)
    else:
        estimate = estimators.rloo if options.estimator == "rloo" else estimators.grpo
        advantage = estimate(rewards, lengths, kept, groups)
    mask = kept[answer_of(lengths)]
    if options.whiten:
        advantage = estimators.whitened(advantage, mask)
    return Experience(read=read, scored=scored, rewards=rewards, advantage=advantage, returns=returns, mask=mask)
