"""Learning from a reward model by proximal policy optimisation (Secrets of RLHF, Part I)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmfast.data.loader import named_rows
from rmfast.data.pack import Pack
from rmfast.objectives.policy import PolicyObjective, ValueObjective
from rmfast.parallel.engine import ReadRows, Shard
from rmfast.trainer.learner import Evaluation, Figures
from rmfast.trainer.ppo.answers import Answers, minibatches
from rmfast.trainer.ppo.experience import (
    AdvantageOptions,
    Experience,
    Read,
    experience,
    read_log_probs,
    read_values,
)
from rmfast.trainer.ppo.figures import StepFigures
from rmfast.trainer.ppo.held_out import HeldOutPrompts
from rmfast.trainer.ppo.kl import KLCoefficient
from rmfast.trainer.ppo.members import of_moments
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.moments import Moments
from rmfast.trainer.ppo.packed import answer_of
from rmfast.trainer.ppo.phases import Phases
from rmfast.trainer.ppo.prompts import Prompts
from rmfast.trainer.ppo.ptx import Ptx
from rmfast.trainer.ppo.records import drawn_records, records
from rmfast.trainer.ppo.rewards import RewardOptions, Scored, score_answers
from rmfast.trainer.ppo.rollouts import Rollouts
from rmfast.trainer.ppo.updates import Trained
from rmfast.trainer.ppo.watch import NO_LIMITS, Limits, watched

Rate = Callable[[int], float]

CRITIC = "critic/"
"""Before the names of the critic's tensors in a state."""
SHUFFLE = 3  # beside the streams of `StepPlan`


@dataclass(frozen=True, kw_only=True)
class PPOOptions:
    """How a rollout is learnt from.

    Args:
        epochs: passes over a rollout, of so many `minibatches`, each of whole prompt groups.
        critic_warmup: first steps, in which the critic alone learns.
        normalise: scores by running moments, which begin with `reward_warmup` steps' prompts, sampled from the
            reference.
        rescale: the critic begins as the reward model, so that it reads values on the scale that normalised scores have
            when training begins.
        kl_in_reward, kl_in_loss: where the penalty counts.
        seed: of the minibatches. budget: tokens of a pack.
    """

    epochs: int
    minibatches: int
    critic_warmup: int
    normalise: bool
    reward_warmup: int
    rescale: bool
    kl_in_reward: bool
    kl_in_loss: bool
    seed: int
    budget: int


class PPOLearner:
    """A step samples answers to its prompts, scores them, and updates policy and critic from them.

    Old, new and reference log-probabilities are those of one temperature, over the tokenizer's ids, whatever filters
    tokens are drawn through. Old ones are read from the packs of the first epoch.

    Args:
        policy_rate, critic_rate: learning rates of a step, 0 for the first one.
        kl: the coefficient at the beginning.
        phases: around each part of a step.
        ptx: demonstrations that the policy learns too; None for none.
        limits: where the run ends.
    """

    def __init__(
        self,
        models: Models,
        prompts: Prompts,
        rollouts: Rollouts,
        held_out: HeldOutPrompts,
        tokenizer: PreTrainedTokenizerBase,
        *,
        total: int,
        policy: PolicyObjective,
        value: ValueObjective,
        rewards: RewardOptions,
        advantages: AdvantageOptions,
        options: PPOOptions,
        kl: KLCoefficient,
        policy_rate: Rate,
        critic_rate: Rate,
        phases: Phases,
        ptx: Ptx | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.models, self.prompts, self.rollouts, self.held_out = models, prompts, rollouts, held_out
        self.tokenizer = tokenizer
        self.total, self.policy, self.value = total, policy, value
        self.rewards, self.advantages, self.options = rewards, advantages, options
        self.kl, self.policy_rate, self.critic_rate = kl, policy_rate, critic_rate
        self.phases, self.ptx, self.limits = phases, ptx, limits
        self.moments = (Moments(),) * len(models.reward.names)
        self.counters = {"episode": 0, "prompts_drawn": 0, "num_tokens": 0, "optim_steps": 0}

    def step(self, number: int) -> Figures:
        """See `Learner`.

        Raises:
            LimitReached: by the answers of the step, of which nothing was learnt.
        """
        if not number:
            with self.phases("beginning"):
                self._begin()
        began = time.perf_counter()
        rows = self.prompts.rows(number)
        name = f"step-{number + 1}"
        requests = self.prompts.requests(rows, self.counters["prompts_drawn"])
        with self.phases("sampling"):
            drawn = self.rollouts.draw(name, self.models.policy, requests)
        sampling = time.perf_counter() - began
        answers = Answers.of(requests, drawn.drafts, self.tokenizer, self.prompts.texts(rows))
        with self.phases("scoring"):
            raw = self.models.reward.score(answers)
        batches = self._batches(answers, number, epoch=0)
        with self.phases("reading"):
            found = self._experience(answers, raw, [pack for _, packs in batches for pack in packs])
        if self.models.policy.data.main:
            self.rollouts.keep(name, drawn.key, records(self.tokenizer, answers, raw, found))
        self.limits.check(number + 1, watched(answers, found.read))
        self.moments = found.scored.moments or self.moments
        with self.phases("updating"):
            trained = self._train(answers, found, batches, number)
        kl = self.kl
        if number >= self.options.critic_warmup:  # before, the policy has not moved, and its KL asks for nothing
            self.kl = kl.updated(float(found.read.kl(answers.lengths).mean()), len(answers.lengths))
        self.counters["episode"] += len(answers.lengths)
        self.counters["prompts_drawn"] += len(rows)
        self.counters["num_tokens"] += answers.tokens
        figures = StepFigures(
            answers=answers, raw=raw, found=found, trained=trained, kl=kl.value if self.options.kl_in_reward else 0.0,
            bootstrap=self.advantages.gamma if self.advantages.bootstrap else None,
            rows=named_rows(self.prompts.table, rows),
        )  # fmt: skip
        known = {
            **(of_moments(self.moments) if self.options.normalise else {}),
            "kl_coefficient": kl.value,
            **{"lr" if each.name == "policy" else f"{each.name}_lr": each.rate for each in trained},
            "critic_warmup": number < self.options.critic_warmup,
            **self.counters,
            **self.phases.figures(),
            "sampling_share": sampling / (time.perf_counter() - began),
        }
        return figures.figures(known)

    def _begin(self) -> None:
        """Fill the moments with scores of the reference's answers."""
        for number in range(self.options.reward_warmup):
            name, rows = f"warmup-{number + 1}", self.prompts.rows(number)
            requests = self.prompts.requests(rows, self.counters["prompts_drawn"])
            drawn = self.rollouts.draw(name, self.models.reference, requests)
            answers = Answers.of(requests, drawn.drafts, self.tokenizer, self.prompts.texts(rows))
            if self.models.policy.data.main:
                self.rollouts.keep(name, drawn.key, drawn_records(self.tokenizer, answers))
            raw = self.models.reward.score(answers)
            self.moments = self._scored(answers, raw).moments or self.moments
            self.counters["prompts_drawn"] += len(rows)

    def _scored(self, answers: Answers, raw: Tensor) -> Scored:
        moments = self.moments if self.options.normalise else None
        return score_answers(raw, answers.lengths, answers.cut, answers.groups, self.rewards, moments)

    def _place(self, moments: Moments) -> None:
        """Put a critic that began as the first reward model on the scale that normalised scores have at first."""
        if self.options.rescale and moments.count and (self.value.shift, self.value.scale) == (0.0, 1.0):
            self.value = replace(self.value, shift=moments.mean, scale=moments.std)

    def _batches(self, answers: Answers, number: int, epoch: int) -> list[tuple[np.ndarray, list[Pack]]]:
        """The minibatches of a pass: prompts, and this rank's packs of them."""
        o, world = self.options, self.models.policy.data
        parts = minibatches(len(answers.requests), o.minibatches, (o.seed, SHUFFLE, number, epoch))
        return [(rows, answers.packs(rows, world, o.budget)) for rows in parts]

    def _experience(self, answers: Answers, raw: Tensor, packs: Sequence[Pack]) -> Experience:
        """Rewards and advantages."""
        models = self.models
        old, entropy = read_log_probs("the policy", models.policy, packs, answers, self.policy)
        reference, _ = read_log_probs("the reference", models.reference, packs, answers, self.policy)
        read = Read(old_log_prob=old, entropy=entropy, reference=reference)
        scored = self._scored(answers, raw)
        if scored.moments is not None:
            self._place(self.moments[0] if self.moments[0].count else scored.moments[0])
        if models.critic is not None:
            values, after = read_values(models.critic, packs, answers, self.value)
            read = replace(read, values=values, after=after)
        kl = self.kl.value if self.options.kl_in_reward else 0.0
        return experience(answers, scored, read, self.advantages, kl=kl)

    def _train(
        self,
        answers: Answers,
        found: Experience,
        batches: list[tuple[np.ndarray, list[Pack]]],
        number: int,
    ) -> list[Trained]:
        """The updates of a step, by whom they are of."""
        o, models = self.options, self.models
        learning: list[tuple[Trained, Mapping[str, Tensor]]] = []
        if number >= o.critic_warmup:
            objective = replace(self.policy, kl=self.kl.value if o.kl_in_loss else 0.0)
            mixed = objective if self.ptx is None else self.ptx.objective(objective)
            policy = Trained("policy", models.policy, mixed, self.policy_rate(number - o.critic_warmup))
            learning.append((policy, found.of_policy))
        if models.critic is not None:
            learning.append((Trained("critic", models.critic, self.value, self.critic_rate(number)), found.of_critic))
        owner = answer_of(answers.lengths)
        for epoch in range(o.epochs):
            for rows, packs in batches if not epoch else self._batches(answers, number, epoch):
                tokens = int(found.mask[torch.isin(answers.groups, torch.from_numpy(rows))[owner]].sum())
                if not tokens:
                    continue
                totals = answers.totals(rows, tokens)
                for trained, columns in learning:
                    batch = [answers.beside(pack, columns) for pack in packs]
                    if self.ptx is not None and trained.name == "policy":
                        batch += self.ptx.packs(self.counters["optim_steps"])
                    trained.update(batch, totals)
                self.counters["optim_steps"] += 1
        return [trained for trained, _ in learning]

    def evaluate(self, step: int, final: bool) -> Sequence[Evaluation]:
        """See `Learner`."""
        with self.phases("evaluating"):
            return self.held_out.evaluate(self.models, step, final)

    def state(self) -> dict[str, Shard]:
        """See `Learner`."""
        critic = {} if self.models.critic is None else self.models.critic.state()
        return {
            **self.models.policy.state(),
            **{f"{CRITIC}{name}": shard for name, shard in critic.items()},
            **{name: Shard(t, 0, tuple(t.shape), writer=self.models.policy.leads) for name, t in self._kept().items()},
        }

    def load_state(self, read: ReadRows) -> None:
        """See `Learner`."""
        self.models.policy.load_state(read)
        if self.models.critic is not None:
            self.models.critic.load_state(lambda name, *place: read(f"{CRITIC}{name}", *place))
        kept = {name: read(name, 0, len(tensor)) for name, tensor in self._kept().items()}
        self.moments = tuple(Moments.from_state(state) for state in kept["ppo/moments"].reshape(-1, 3))
        self.kl = self.kl.with_state(kept["ppo/kl"])
        shift, scale = kept["ppo/value"].tolist()
        self.value = replace(self.value, shift=shift, scale=scale)

    def _kept(self) -> dict[str, Tensor]:
        """What a resumed run needs beside weights and optimizers, float64."""
        value = torch.tensor([self.value.shift, self.value.scale], dtype=torch.float64)
        moments = torch.cat([one.state for one in self.moments])  # a member's behind another's
        return {"ppo/moments": moments, "ppo/kl": self.kl.state, "ppo/value": value}
