"""What PPO makes of sampled answers, written out for runs to be compared with: models of transformers in fp64, one
answer at a time, sums in Python.

The formulas are those of docs/ppo.md. Nothing here is rmfast's, and nothing is computed for two answers at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Section = Mapping[str, Any]
"""A section of a resolved config."""


def no_figures() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(eq=False)
class Answer:
    """An answer as it was sampled, of n tokens, and what is made of it.

    Args:
        group: its prompt's number in the step. tail: what the chat template writes after its end.
    """

    group: int
    prompt: list[int]
    ids: list[int]
    stop_reason: str
    tail: list[int] = field(default_factory=list)

    old: Tensor = field(default_factory=no_figures)  # [n], as the next three
    entropy: Tensor = field(default_factory=no_figures)
    behaviour: Tensor = field(default_factory=no_figures)
    reference: Tensor = field(default_factory=no_figures)
    values: Tensor = field(default_factory=no_figures)  # [n + 1], the last one after the answer
    raw: float = 0.0
    score: float = 0.0
    kept: bool = True
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)

    @property
    def cut(self) -> bool:
        return self.stop_reason == "length"

    @property
    def whole(self) -> list[int]:
        return self.prompt + self.ids

    @property
    def kl(self) -> float:
        return float((self.old - self.reference).sum())


def read_logits(model: PreTrainedModel, answer: Answer, ids: int) -> Tensor:
    """[n, ids]: logits that an answer's tokens were drawn from, of the first ids."""
    logits: Tensor = model(torch.tensor([answer.whole])).logits[0]
    return logits[len(answer.prompt) - 1 : -1, :ids]


def log_probs_of(logits: Tensor, answer: Answer, temperature: float) -> tuple[Tensor, Tensor]:
    """[n]: log-probabilities of an answer's tokens under softmax(logits / temperature), and entropies."""
    log_probs = (logits / temperature).log_softmax(1)
    return log_probs.gather(1, torch.tensor(answer.ids)[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(1)


def behaviour_of(logits: Tensor, answer: Answer, ppo: Section) -> Tensor:
    """[n]: log-probabilities of the distribution that an answer's tokens were drawn from."""
    found = []
    for place, row in enumerate(logits):
        seen = torch.tensor(sorted({*answer.prompt, *answer.ids[:place]}))
        old, penalty = row[seen], ppo["repetition_penalty"]
        row = row.index_copy(0, seen, torch.where(old > 0, old / penalty, old * penalty)) / ppo["temperature"]
        if ppo["top_k"]:
            row = torch.where(row < row.topk(ppo["top_k"]).values[-1], -math.inf, row)
        probs, order = row.softmax(0).sort(descending=True)
        before = probs.cumsum(0) - probs
        out = order[(before >= ppo["top_p"]) | (probs < ppo["min_p"] * probs[0])]
        found.append(row.index_fill(0, out, -math.inf).log_softmax(0)[answer.ids[place]])
    return torch.stack(found)


def read_scores(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """What a reward head says at each token."""
    scores: Tensor = model.score(model.model(torch.tensor([ids])).last_hidden_state[0])
    return scores[:, 0]


def read_values(model: PreTrainedModel, answer: Answer, shift: float, scale: float) -> Tensor:
    """[n + 1]: values of the state before each token, read at the token before it, and after the last one."""
    return (read_scores(model, answer.whole)[len(answer.prompt) - 1 :] - shift) / scale


@torch.no_grad()
def read_reward(model: PreTrainedModel, answer: Answer) -> float:
    """The raw score, at the last token: of an answer that ended the chat template's, of another what was sampled."""
    return float(read_scores(model, answer.whole + ([] if answer.cut else answer.tail))[-1])


def moments_of(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation with Bessel's correction, 1 without spread."""
    every = torch.tensor(scores, dtype=torch.float64)
    return float(every.mean()), float(every.std()) if len(set(scores)) > 1 else 1.0


def set_scores(answers: Sequence[Answer], ppo: Section, history: list[float]) -> None:
    """Scores of raw scores; the moments of all that were kept, in this step and before (`history`), come first."""
    for answer in answers:
        answer.kept = not (answer.cut and ppo["truncated"] == "mask")
    mean, std = 0.0, 1.0
    if ppo["reward_norm"] == "running":
        history += [answer.raw for answer in answers if answer.kept]
        mean, std = moments_of(history)
    for answer in answers:
        score = (answer.raw - mean) / std
        if clip := ppo["reward_clip"]:
            score = min(max(score, -clip), clip)
        if buffer := ppo["overlong_buffer"]:
            beyond = len(answer.ids) - (ppo["max_new_tokens"] - buffer)
            score -= ppo["overlong_penalty"] * max(0, beyond) / buffer
        if answer.cut:
            score = {"zero": 0.0, "penalty": ppo["truncated_score"]}.get(ppo["truncated"], score)
        answer.score = score


def set_advantages(answers: Sequence[Answer], ppo: Section, kl: float) -> None:
    """Rewards of tokens, advantages and returns of the answers that are kept.

    Args:
        kl: the coefficient in the reward.
    """
    kept = [answer for answer in answers if answer.kept]
    for answer in kept:
        answer.rewards = [-kl * gap for gap in (answer.old - answer.reference).tolist()]
        answer.rewards[-1] += answer.score
    for answer in kept:
        if ppo["advantage"] == "gae":
            _set_gae(answer, ppo)
        elif ppo["advantage"] == "reinforce":
            powers = [ppo["gamma"] ** i for i in range(len(answer.ids))]
            answer.advantages = [
                sum(power * reward for power, reward in zip(powers, answer.rewards[t:], strict=False))
                for t in range(len(answer.ids))
            ]
        else:
            others = [sum(a.rewards) for a in kept if a.group == answer.group and a is not answer]
            against = _leave_one_out if ppo["advantage"] == "rloo" else _standardised
            answer.advantages = [against(sum(answer.rewards), others)] * len(answer.ids)
    if ppo["whiten"]:
        every = torch.tensor([a for answer in kept for a in answer.advantages], dtype=torch.float64)
        mean, std = float(every.mean()), float(every.std(correction=0))
        for answer in kept:
            answer.advantages = [(a - mean) / std for a in answer.advantages]


def _set_gae(answer: Answer, ppo: Section) -> None:
    """From the last token back: A_t = delta_t + gamma lam A_{t+1}."""
    values, gamma = answer.values.tolist(), ppo["gamma"]
    bootstrap = answer.cut and ppo["truncated"] == "bootstrap"
    following = [*values[1:-1], values[-1] if bootstrap else 0.0]
    advantage, found = 0.0, list[float]()
    for reward, value, after in reversed(list(zip(answer.rewards, values[:-1], following, strict=True))):
        advantage = reward + gamma * after - value + gamma * ppo["lam"] * advantage
        found.insert(0, advantage)
    answer.advantages = found
    answer.returns = [a + v for a, v in zip(found, values[:-1], strict=True)]


def _leave_one_out(reward: float, others: Sequence[float]) -> float:
    """An answer's reward against its prompt's other answers; 0 where there are none."""
    return reward - sum(others) / len(others) if others else 0.0


def _standardised(reward: float, others: Sequence[float]) -> float:
    """Against all of its prompt's answers, in units of their spread; 0 without spread."""
    mean, std = moments_of([reward, *others])
    return (reward - mean) / std if any(other != reward for other in others) else 0.0
