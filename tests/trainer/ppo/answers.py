"""Random rollouts, and the figures of PPO written out token by token from their formulas, in Python's fp64."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """Sampled answers as plain lists: [B] of answers, [B][tokens] of their tokens."""

    raw: list[float]
    cut: list[bool]
    group: list[int]
    old: list[list[float]]
    reference: list[list[float]]
    values: list[list[float]]
    after: list[float]

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(tokens) for tokens in self.old], dtype=torch.int64)


def random_answers(seed: int = 0, prompts: int = 5, samples: int = 4, longest: int = 6) -> Answers:
    """Answers of every length up to `longest`; those of this length are cut, now and then one that is shorter."""
    draw = random.Random(seed)
    lengths = [draw.randint(1, longest) for _ in range(prompts * samples)]

    def tokens(mean: float) -> list[list[float]]:
        return [[draw.gauss(mean, 1.0) for _ in range(n)] for n in lengths]

    return Answers(
        raw=[draw.gauss(3.0, 2.0) for _ in lengths],
        cut=[n == longest or draw.random() < 0.1 for n in lengths],
        group=[i // samples for i in range(len(lengths))],
        old=tokens(-2.0),
        reference=tokens(-2.0),
        values=tokens(0.5),
        after=[draw.gauss(0.5, 1.0) for _ in lengths],
    )


def packed(tokens: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for answer in tokens for value in answer], dtype=torch.float64)


def rows(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def kl_rewards(answers: Answers, scores: Sequence[float], kl: float) -> list[list[float]]:
    """Secrets of RLHF Part I, equation 19."""
    out = []
    for score, old, reference in zip(scores, answers.old, answers.reference, strict=True):
        rewards = [-kl * (a - b) for a, b in zip(old, reference, strict=True)]
        rewards[-1] += score
        out.append(rewards)
    return out


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float, after: float = 0.0) -> list[float]:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}: the sum as it is written, not the recursion.

    after: V of the state behind the last token.
    """
    behind = [*values[1:], after]
    delta = [r + gamma * v1 - v0 for r, v0, v1 in zip(rewards, values, behind, strict=True)]
    return [sum((gamma * lam) ** k * delta[t + k] for k in range(len(delta) - t)) for t in range(len(delta))]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def population_std(values: Sequence[float]) -> float:
    return mean([(value - mean(values)) ** 2 for value in values]) ** 0.5
