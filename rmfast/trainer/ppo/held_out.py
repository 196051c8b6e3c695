"""What a policy is evaluated on: answers to held-out prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import Example
from rmfast.data.files import written_whole
from rmfast.jsonio import json_line
from rmfast.objectives.policy import PolicyObjective
from rmfast.outputs.checksums import sealed_line
from rmfast.rollout.policy import draw_numbers
from rmfast.rollout.stops import draft_text
from rmfast.trainer.held_out import due
from rmfast.trainer.learner import Evaluation
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import Read, read_log_probs
from rmfast.trainer.ppo.members import of_each
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.packed import sums
from rmfast.trainer.ppo.records import drawn_records
from rmfast.trainer.ppo.rollouts import Rollouts
from rmfast.trainer.ppo.watch import watched


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutPrompts:
    """Held-out prompts, each sampled once as in training. A prompt's noise is the same in each evaluation.

    Args:
        prompts: token ids. tokenizer: theirs.
        examples: the prompts as their rows have them; none where no reward model reads texts.
        policy: how log-probabilities are read.
        every: steps between evaluations; None: before the first step and after the last one.
        budget: tokens of a pack.
    """

    prompts: Sequence[np.ndarray]
    tokenizer: PreTrainedTokenizerBase
    rollouts: Rollouts
    policy: PolicyObjective
    every: int | None
    budget: int
    examples: Sequence[Example] = ()

    def evaluate(self, models: Models, step: int, final: bool) -> list[Evaluation]:
        """Evaluate what is due after so many steps, on all ranks."""
        if not self.prompts or not (final or step == 0 or due(step, self.every)):
            return []
        name, requests = f"step-{step}", draw_numbers(self.prompts)
        if models.policy.data.main:
            self.rollouts.folder.parent.mkdir(exist_ok=True)  # RUN/eval
        drawn = self.rollouts.draw(name, models.policy, requests)
        answers = Answers.of(requests, drawn.drafts, self.tokenizer, self.examples)
        if models.policy.data.main:
            self.rollouts.keep(name, drawn.key, drawn_records(self.tokenizer, answers))
        packs = answers.packs(np.arange(len(requests)), models.policy.data, self.budget)
        log_prob, entropy = read_log_probs("the policy", models.policy, packs, answers, self.policy)
        reference, _ = read_log_probs("the reference", models.reference, packs, answers, self.policy)
        read = Read(old_log_prob=log_prob, entropy=entropy, reference=reference)
        rewards = models.reward.score(answers)
        figures = {
            "reward": rewards.mean(1),
            **of_each("reward", rewards),
            **({} if models.gold is None else {"gold": models.gold.score(answers).mean(1)}),
            "kl": read.kl(answers.lengths),
            "entropy": sums(entropy, answers.lengths) / answers.lengths,
            "length": answers.lengths.double(),
        }
        metrics: dict[str, Any] = {"prompts": len(requests)}
        for key, values in figures.items():
            metrics |= interval(key, values)
        metrics |= {key: value for key, value in watched(answers, read).items() if key in ("cut_share", "perplexity")}
        return [
            Evaluation(
                name="eval",
                metrics=metrics,
                prefix="eval_",
                text=evaluation_text(step, metrics),
                keep=partial(keep_samples, step, sample_rows(self.tokenizer, answers, figures)),
            )
        ]


def interval(name: str, values: Tensor) -> dict[str, float]:
    """The mean of some values and its 95 % interval, from their standard error."""
    mean = float(values.mean())
    half = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def evaluation_text(step: int, metrics: Mapping[str, Any]) -> str:
    """A line for people."""

    def shown(name: str) -> str:
        low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
        return f"{name} {metrics[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if math.isfinite(low + high) else "")

    names = [name for name in ("reward", "gold", "kl", "length") if name in metrics]
    figures = ", ".join(shown(name) for name in names)
    return f"eval after step {step}: {figures}, {metrics['cut_share']:.0%} cut"


def sample_rows(
    tokenizer: PreTrainedTokenizerBase, answers: Answers, figures: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """A row for each answer, with its figures."""
    columns = {name: values.tolist() for name, values in figures.items()}
    rows = []
    for number, (request, draft) in enumerate(zip(answers.requests, answers.flat, strict=True)):
        row = {
            "prompt": tokenizer.decode(request.ids.tolist()),
            "response": draft_text(tokenizer, request.ids, draft),
            "stop_reason": draft.stop_reason,
        }
        rows.append(row | {name: values[number] for name, values in columns.items()})
    return rows


def keep_samples(step: int, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write an evaluation's answers."""
    with written_whole(folder / f"samples-{step}.jsonl") as temporary:
        temporary.write_bytes(b"".join(sealed_line(json_line(row)) for row in rows))
