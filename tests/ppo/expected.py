"""The expected update of a policy with a parameter for every token after every history: no samples, no network.

All answers are one batch, each as heavy as it is likely, so that the figures of a step may be computed by the functions
that training computes them by. What a rule of updates leads to is found by following it; so is what a wrong one does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rmfast.trainer.ppo.packed import answer_of
from tests.ppo.exact import Answers, Steps


@dataclass(frozen=True)
class Batch:
    """All answers after one another, T tokens; states are numbered 0 .. S - 1, histories by length."""

    answers: Answers

    @cached_property
    def token(self) -> Tensor:
        """int64 [T]."""
        return torch.tensor([token for ids in self.answers.ids for token in ids])

    @cached_property
    def state(self) -> Tensor:
        """int64 [T]: the history before each token."""
        letter = {token: i for i, token in enumerate(self.answers.letters)}
        count, found = len(letter), list[int]()
        for ids in self.answers.ids:
            history = 0
            for d, token in enumerate(ids):
                found.append(sum(count**e for e in range(d)) + history)
                history = history * count + letter.get(token, 0)
        return torch.tensor(found)

    @cached_property
    def eos(self) -> Tensor:
        """bool [T]: whether a token is the eos."""
        return self.token == self.answers.eos

    def log_prob(self, steps: Steps) -> Tensor:
        """[T]: of each token."""
        return torch.cat(steps)[self.state, self.token]

    def weight(self, steps: Steps) -> Tensor:
        """[T]: the probability of the answer that a token is in."""
        return self.answers.log_prob(steps).exp()[answer_of(self.answers.lengths)]

    def after_tokens(self, steps: Steps, figures: Tensor) -> Tensor:
        """[S, V]: the mean of tokens' figures [T] over the answers that go on from a history with a token."""
        width = self.answers.vocabulary
        place, weight = self.state * width + self.token, self.weight(steps)
        total, mass = torch.zeros(2, int(place.max() // width + 1) * width, dtype=torch.float64)
        return (total.index_add(0, place, weight * figures) / mass.index_add(0, place, weight)).reshape(-1, width)

    def before_tokens(self, steps: Steps, figures: Tensor) -> Tensor:
        """[T]: the mean of tokens' figures [T] over the answers with the history before a token: its exact value, of
        rewards to go."""
        means = (torch.cat(steps).exp() * self.after_tokens(steps, figures)).sum(1)
        return means[self.state]


def led_to(
    batch: Batch, start: Steps, advantages: Callable[[Steps], Tensor], *, rate: float, updates: int = 80
) -> Tensor:
    """[A]: log pi after updates by advantages [T].

    An update adds rate x (mean advantage of a token after a history) to its logit, which is the policy's gradient
    divided by the token's probability, so that updates stop where the gradient vanishes, and there alone.
    """
    steps = start
    for _ in range(updates):
        means = batch.after_tokens(steps, advantages(steps)).split([len(step) for step in steps])
        steps = tuple((step + rate * mean).log_softmax(1) for step, mean in zip(steps, means, strict=True))
    return batch.answers.log_prob(steps)
