"""What is logged of a step of PPO: under the names of TRL's last PPO trainer where it has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmfast.trainer.learner import Figures, Line
from rmfast.trainer.ppo.advantages import explained_variance, flat_group_share
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import Experience
from rmfast.trainer.ppo.members import of_members
from rmfast.trainer.ppo.packed import sums
from rmfast.trainer.ppo.updates import Trained
from rmfast.trainer.ppo.watch import mean, skewness, watched


@dataclass(frozen=True, kw_only=True, eq=False)
class StepFigures:
    """A step, of which its figures are made.

    Args:
        kl: coefficient of the penalty in the reward.
        bootstrap: discount of the value that a cut answer gets beside its score; None: it gets none.
        trained: whose updates it made. rows: where its prompts are in the data, in words.
    """

    answers: Answers
    raw: Tensor
    found: Experience
    trained: Sequence[Trained]
    kl: float
    bootstrap: float | None
    rows: str

    def figures(self, known: Mapping[str, Any]) -> Figures:
        """The step's figures; `known` are others that its line holds."""
        host = self._of_rollout() | dict(known)
        device = {name: tensor for each in self.trained for name, tensor in each.device().items()}

        def line(values: dict[str, Any]) -> Line:
            metrics, errors = dict(host), []
            for each in self.trained:
                updates = each.read(values)
                sound = [number for number, update in enumerate(updates) if _finite(update)]
                metrics |= each.metrics(updates, sound) | _updates(each.name, [updates[number] for number in sound])
                errors += [
                    f"{each.name}: loss {u['loss']} and gradient norm {u['grad_norm']} of update {number + 1} are not "
                    "both finite"
                    for number, u in enumerate(updates)
                    if number not in sound
                ]
            if not errors:
                return Line(metrics)
            return Line(
                metrics | {"skipped": True, "skipped_updates": len(errors)},
                f"{errors[0]}; that update changed nothing. Prompts: {self.rows}. Lower optim.lr or ppo.critic_lr, "
                "look at these rows",
            )

        tokens = self.answers.tokens
        return Figures(
            device=device or {"none": torch.zeros(1)},
            line=line,
            amounts={"tokens_per_second": tokens, "answers_per_second": len(self.answers.lengths)},
        )

    def _of_rollout(self) -> dict[str, Any]:
        """Figures that the host knows."""
        a, read, scored, mask = self.answers, self.found.read, self.found.scored, self.found.mask
        kept, gap = scored.kept, read.old_log_prob - a.behaviour
        kl = read.kl(a.lengths)
        penalty, raw = -self.kl * kl[kept], self.raw.mean(1)
        metrics: dict[str, Any] = {
            "objective/entropy": mean(sums(read.entropy, a.lengths)),
            "objective/non_score_reward": mean(penalty),
            "objective/rlhf_reward": mean(scored.scores[kept] + penalty),
            "objective/scores": mean(raw),
            "objective/scores_std": float(raw.std(correction=0)),
            "objective/scores_skew": skewness(raw),
            "val/num_eos_tokens": sum(draft.stop_reason == "eos" for draft in a.flat),
            "mean_reward": mean(scored.scores[kept]),
            "mean_length": mean(a.lengths.double()),
            **watched(a, read),
            "kl_per_token": mean(read.old_log_prob - read.reference),
            "sampler_gap": mean(gap.abs()),
            "sampler_gap_max": float(gap.abs().max()),
            "kept_mass": mean(gap.exp()),
            "masked_answers": int((~kept).sum()),
            "flat_group_share": flat_group_share(scored.scores, kept, a.groups),
        }
        metrics |= of_members(self.raw, scored, a.groups)
        if read.values is not None and self.found.returns is not None:
            metrics["explained_variance"] = explained_variance(read.values, self.found.returns, mask)
        if self.bootstrap is not None and read.after is not None:
            metrics["cut_value"] = self.bootstrap * mean(read.after[a.cut])
        return metrics


def _finite(update: Mapping[str, float]) -> bool:
    """Whether an update was made: one whose loss or gradient is not finite is left out."""
    return math.isfinite(update["loss"]) and math.isfinite(update["grad_norm"])


def _updates(name: str, updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Figures of a model's updates that its objective does not give."""
    if not updates:
        return {}
    norms = {"grad_norm" if name == "policy" else f"{name}_grad_norm": _average(updates, "grad_norm")}
    if name != "policy":
        return norms
    return norms | {"loss": _average(updates, "loss"), "first_ratio_gap": updates[0]["ratio_gap_max"]}


def _average(updates: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(update[name] for update in updates) / len(updates)
