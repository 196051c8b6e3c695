"""A run of PPO, written out step by step: see `tests.ppo.dense`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.ppo.dense import (
    Answer,
    Section,
    behaviour_of,
    log_probs_of,
    moments_of,
    read_logits,
    read_reward,
    read_values,
    set_advantages,
    set_scores,
)

SHUFFLE = 3  # the stream of random numbers that shuffles minibatches

Losses = Callable[[Answer], dict[str, Tensor]]


@dataclass(kw_only=True, eq=False)
class DenseRun:
    """A run, step by step.

    Args:
        ppo, optim: of the resolved config. steps, seed: of the run.
        policy, critic: are trained; the critic None for estimators without.
        ids: how many ids the tokenizer has.
        shown: demonstrations of each update, as ids of prompts and answers.
    """

    ppo: Section
    optim: Section
    steps: int
    seed: int
    policy: PreTrainedModel
    reference: PreTrainedModel
    reward: PreTrainedModel
    critic: PreTrainedModel | None
    ids: int
    shown: Sequence[tuple[list[int], list[int]]] = ()

    def __post_init__(self) -> None:
        self.history: list[float] = []  # raw scores that the running moments have seen
        self.kl, self.shift, self.scale = float(self.ppo["kl"]), 0.0, 1.0
        self.counts = {"episode": 0, "prompts_drawn": 0, "num_tokens": 0, "optim_steps": 0}
        self.trained = {"policy": self.policy} | ({} if self.critic is None else {"critic": self.critic})
        self.adam = {name: self._adamw(model) for name, model in self.trained.items()}
        self.warmup = self.ppo["critic_warmup"] or 0

    def _adamw(self, model: PreTrainedModel) -> torch.optim.AdamW:
        """Weight decay is of matrices alone."""
        matrices, others = ([p for p in model.parameters() if (p.dim() > 1) is big] for big in (True, False))
        decay = self.optim["weight_decay"]
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, betas=tuple(self.optim["betas"]), eps=self.optim["eps"])

    def begin(self, batches: Sequence[Sequence[Answer]]) -> None:
        """Batches of the reference's answers fill the moments."""
        for answers in batches:
            for answer in answers:
                answer.raw = read_reward(self.reward, answer)
            set_scores(answers, self.ppo, self.history)
            self.counts["prompts_drawn"] += len({answer.group for answer in answers})

    @torch.no_grad()
    def read(self, answers: Sequence[Answer]) -> None:
        """What the models say of answers, before any update."""
        temperature = self.ppo["temperature"]
        for answer in answers:
            logits = read_logits(self.policy, answer, self.ids)
            answer.old, answer.entropy = log_probs_of(logits, answer, temperature)
            answer.behaviour = behaviour_of(logits, answer, self.ppo)
            logits = read_logits(self.reference, answer, self.ids)
            answer.reference, _ = log_probs_of(logits, answer, temperature)
            answer.raw = read_reward(self.reward, answer)

    @torch.no_grad()
    def _set_values(self, answers: Sequence[Answer], known: Sequence[float]) -> None:
        """Values, which a critic that began as the reward model has in the units of normalised scores at first.

        Args:
            known: scores that the moments knew then: those of the warm-up, without one the first step's.
        """
        assert self.critic is not None
        if self.ppo["critic"] == "reward" and self.ppo["reward_norm"] == "running" and not self.counts["episode"]:
            self.shift, self.scale = moments_of(known)
        for answer in answers:
            answer.values = read_values(self.critic, answer, self.shift, self.scale)

    def step(self, number: int, answers: Sequence[Answer]) -> dict[str, float]:
        """The metrics of a step, 0 for the first one; afterwards policy and critic are updated."""
        self.read(answers)
        before = list(self.history)
        set_scores(answers, self.ppo, self.history)
        if self.critic is not None:
            self._set_values(answers, before or self.history)
        set_advantages(answers, self.ppo, self.kl_in_reward)
        metrics = self._rollout_metrics(answers) | {"critic_warmup": number < self.warmup}
        done = self._train(number, answers)
        self.counts["episode"] += len(answers)
        self.counts["prompts_drawn"] += len({answer.group for answer in answers})
        self.counts["num_tokens"] += sum(len(answer.ids) for answer in answers)
        if self.ppo["kl_target"] is not None and number >= self.warmup:
            error = min(max(metrics["objective/kl"] / self.ppo["kl_target"] - 1, -0.2), 0.2)
            self.kl *= 1 + error * len(answers) / self.ppo["kl_horizon"]
        return metrics | self._update_metrics(number, done) | self.counts

    @property
    def kl_in_reward(self) -> float:
        return 0.0 if self.ppo["kl_in"] == "loss" else self.kl

    @property
    def kl_in_loss(self) -> float:
        return 0.0 if self.ppo["kl_in"] == "reward" else self.kl

    def _train(self, number: int, answers: Sequence[Answer]) -> dict[str, list[dict[str, float]]]:
        """The updates of a step; of each of them the means of figures."""
        learning: dict[str, Losses] = {} if number < self.warmup else {"policy": self._policy_losses}
        learning |= {} if self.critic is None else {"critic": self._value_losses}
        done: dict[str, list[dict[str, float]]] = {name: [] for name in learning}
        for epoch in range(self.ppo["epochs"]):
            draw = np.random.default_rng([self.seed, SHUFFLE, number, epoch])
            groups = draw.permutation(len({answer.group for answer in answers}))
            for part in np.array_split(groups, self.ppo["minibatches"]):
                batch = [answer for answer in answers if answer.kept and answer.group in part]
                if not batch:
                    continue
                self.counts["optim_steps"] += 1
                for name, losses in learning.items():
                    done[name].append(self._update(name, batch, losses, self.rate(name, number)))
        return done

    def rate(self, name: str, number: int) -> float:
        """Constant, or linear, after a linear rise; the policy's is of the steps in which it learns."""
        before = self.warmup if name == "policy" else 0
        number, total, warmup = number - before, self.steps - before, int(self.optim["warmup"])
        peak = float(self.optim["lr"] if name == "policy" else self.ppo["critic_lr"])
        if number < warmup:
            return peak * number / warmup
        return peak * (total - number) / (total - warmup) if self.optim["schedule"] == "linear" else peak

    def _policy_losses(self, answer: Answer) -> dict[str, Tensor]:
        """Figures [n] of tokens; `loss` is what is minimised."""
        ppo = self.ppo
        logits = read_logits(self.policy, answer, self.ids)
        log_prob, entropy = log_probs_of(logits, answer, ppo["temperature"])
        ratio, advantage = (log_prob - answer.old).exp(), torch.tensor(answer.advantages, dtype=torch.float64)
        free, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - ppo["clip"], 1 + ppo["clip_high"])
        figures = {
            "loss/policy_avg": torch.maximum(free, clipped),
            "policy/approxkl_avg": 0.5 * (log_prob - answer.old).square(),
            "policy/clipfrac_avg": (clipped > free).double(),
            "policy/entropy_avg": entropy,
            "val/ratio": ratio,
            "ratio_squared": ratio.square(),
        }
        loss = figures["loss/policy_avg"] - ppo["entropy"] * entropy
        if self.kl_in_loss:
            gap = log_prob - answer.reference
            k2, k3 = 0.5 * gap.square(), ratio * ((-gap).exp() - 1 + gap)
            figures["loss/kl_avg"] = k2 if ppo["kl_estimator"] == "k2" else k3
            loss = loss + self.kl_in_loss * figures["loss/kl_avg"]
        return figures | {"loss": loss}

    def _value_losses(self, answer: Answer) -> dict[str, Tensor]:
        """See `_policy_losses`."""
        assert self.critic is not None
        old, returns = answer.values[:-1], torch.tensor(answer.returns, dtype=torch.float64)
        values = read_values(self.critic, answer, self.shift, self.scale)[:-1]
        free = near = (values - returns).square()
        if clip := self.ppo["value_clip"]:
            near = (torch.clamp(values, old - clip, old + clip) - returns).square()
        losses = 0.5 * torch.maximum(free, near)
        return {"loss/value_avg": losses, "val/clipfrac_avg": (near > free).double(), "loss": losses}

    def _update(self, name: str, batch: Sequence[Answer], losses: Losses, rate: float) -> dict[str, float]:
        """A step of the optimizer on a minibatch; the means over its tokens, and the norm of the gradient."""
        tokens = sum(len(answer.ids) for answer in batch)
        means: dict[str, float] = {}
        for answer in batch:
            shares = {key: values.sum() / tokens for key, values in losses(answer).items()}
            shares["loss"].backward()
            means |= {key: means.get(key, 0.0) + float(share.detach()) for key, share in shares.items()}
        if name == "policy" and self.shown:
            likelihood = self._likelihood()
            (self.ppo["ptx"] * likelihood).backward()
            means |= {"loss/ptx_avg": float(likelihood.detach())}
            means["loss"] += self.ppo["ptx"] * means["loss/ptx_avg"]
        parameters, adam = list(self.trained[name].parameters()), self.adam[name]
        norm = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None) ** 0.5
        if self.optim["clip"]:
            torch.nn.utils.clip_grad_norm_(parameters, self.optim["clip"])
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
        return means | {"grad_norm": norm}

    def _likelihood(self) -> Tensor:
        """The negative log-likelihood of demonstrations, a mean over their answers' tokens, of the whole vocabulary."""
        total = torch.zeros((), dtype=torch.float64)
        for prompt, answer in self.shown:
            log_probs = self.policy(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(1)
            total = total - log_probs[torch.arange(len(answer)), torch.tensor(answer)].sum()
        return total / sum(len(answer) for _, answer in self.shown)

    def _rollout_metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        kept = [answer for answer in answers if answer.kept]
        scores, penalty = [answer.score for answer in kept], [-self.kl_in_reward * answer.kl for answer in kept]
        lengths, kls = [len(answer.ids) for answer in answers], [answer.kl for answer in answers]
        raw = [answer.raw for answer in answers]
        gap = torch.cat([answer.old - answer.behaviour for answer in answers])
        groups = [{a.score for a in kept if a.group == group} for group in {answer.group for answer in answers}]
        metrics = {
            "objective/kl": mean(kls),
            "objective/entropy": mean([float(answer.entropy.sum()) for answer in answers]),
            "objective/non_score_reward": mean(penalty),
            "objective/rlhf_reward": mean(scores) + mean(penalty),
            "objective/scores": mean(raw),
            "objective/scores_std": (second := mean([(one - mean(raw)) ** 2 for one in raw])) ** 0.5,
            "objective/scores_skew": mean([(one - mean(raw)) ** 3 for one in raw]) / second**1.5,
            "val/num_eos_tokens": sum(answer.stop_reason == "eos" for answer in answers),
            "mean_reward": mean(scores),
            "mean_length": mean(lengths),
            "kl_per_token": sum(kls) / sum(lengths),
            "entropy_per_token": sum(float(answer.entropy.sum()) for answer in answers) / sum(lengths),
            "perplexity": perplexity(answers),
            "sampler_gap": float(gap.abs().mean()),
            "sampler_gap_max": float(gap.abs().max()),
            "kept_mass": float(gap.exp().mean()),
            "cut_share": mean([answer.cut for answer in answers]),
            "masked_answers": len(answers) - len(kept),
            "flat_group_share": mean([len(scores) < 2 for scores in groups]),
            "kl_coefficient": self.kl,
        }
        if self.ppo["reward_norm"] == "running":
            metrics |= dict(zip(("reward_mean", "reward_std"), moments_of(self.history), strict=True))
        if self.critic is not None:
            returns = torch.tensor([g for answer in kept for g in answer.returns], dtype=torch.float64)
            errors = returns - torch.cat([answer.values[:-1] for answer in kept])
            metrics["explained_variance"] = float(1 - errors.var() / returns.var())
        if self.ppo["truncated"] == "bootstrap":
            metrics["cut_value"] = self.ppo["gamma"] * mean([float(a.values[-1]) for a in answers if a.cut])
        return metrics

    def _update_metrics(self, number: int, done: Mapping[str, Sequence[dict[str, float]]]) -> dict[str, float]:
        """Means over updates."""
        metrics: dict[str, float] = {}
        for name, updates in done.items():
            metrics["lr" if name == "policy" else "critic_lr"] = self.rate(name, number)
            for update in updates:
                if name == "policy":
                    update["val/ratio_var"] = update.pop("ratio_squared") - update["val/ratio"] ** 2
                else:
                    update["critic_grad_norm"] = update.pop("grad_norm")
                    del update["loss"]  # which is the policy's in a step's metrics
                for key, value in update.items():
                    metrics[key] = metrics.get(key, 0.0) + value / len(updates)
        return metrics | ({"first_ratio_gap": 0.0} if done.get("policy") else {})

    def evaluate(self, answers: Sequence[Answer], gold: PreTrainedModel | None) -> dict[str, float]:
        """The metrics of an evaluation."""
        self.read(answers)
        figures = {
            "reward": [answer.raw for answer in answers],
            "kl": [answer.kl for answer in answers],
            "entropy": [float(answer.entropy.mean()) for answer in answers],
            "length": [float(len(answer.ids)) for answer in answers],
        }
        if gold is not None:
            figures["gold"] = [read_reward(gold, answer) for answer in answers]
        metrics = {"prompts": len(answers), "cut_share": mean([answer.cut for answer in answers])}
        metrics["perplexity"] = perplexity(answers)
        for name, values in figures.items():
            middle = mean(values)
            spread = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
            half = 1.96 * (spread / len(values)) ** 0.5
            metrics |= {name: middle, f"{name}_low": middle - half, f"{name}_high": middle + half}
        return {f"eval_{key}": value for key, value in metrics.items()}


def perplexity(answers: Sequence[Answer]) -> float:
    """Of all tokens under the policy that drew them."""
    return math.exp(-sum(float(a.old.sum()) for a in answers) / sum(len(a.ids) for a in answers))


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return sum(values) / len(values) if values else 0.0
