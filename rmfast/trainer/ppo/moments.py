"""Running mean and spread of a reward model's scores, by which they are normalised."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of all scores so far, of one reward model, in fp64.

    Chan, Golub and LeVeque 1979: two parts are merged by their counts, so that the order and the size of the batches
    that scores arrive in change the moments by rounding only. Equal scores have a spread of exactly 0.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, scores: Tensor) -> "Moments":
        """The moments of a batch [n]."""
        if not len(scores):
            return cls()
        scores = scores.double()
        deviation = scores - scores[0]  # as the mean of equal numbers may differ from them by rounding
        mean = deviation.mean()
        return cls(len(scores), float(scores[0] + mean), float((deviation - mean).square().sum()))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both batches together."""
        if not self.count or not other.count:
            return other if other.count else self
        count, delta = self.count + other.count, other.mean - self.mean
        mean = self.mean + delta * other.count / count
        between = delta * delta * self.count * other.count / count
        return Moments(count, mean, self.squares + other.squares + between)

    def updated(self, scores: Tensor) -> "Moments":
        """The moments with a batch [n] taken in; the batch of all ranks, once.

        Raises:
            ValueError: a score that is not finite, which no later batch would make good.
        """
        if not bool(scores.isfinite().all()):
            raise ValueError("moments: a score is not finite")
        return self.merged(Moments.of(scores))

    @property
    def std(self) -> float:
        """The standard deviation with Bessel's correction; 1 until there are two different scores: a single score says
        nothing of the scale, and equal ones are normalised to 0."""
        return math.sqrt(self.squares / (self.count - 1)) if self.squares > 0 else 1.0

    def normalised(self, scores: Tensor) -> Tensor:
        """(scores - mean) / std, fp64."""
        return (scores.double() - self.mean) / self.std

    @property
    def state(self) -> Tensor:
        """float64 [3]: count, mean, sum of squared deviations."""
        return torch.tensor([self.count, self.mean, self.squares], dtype=torch.float64)

    @classmethod
    def from_state(cls, state: Tensor) -> "Moments":
        """The moments that `state` was taken of, to the bit."""
        count, mean, squares = state.tolist()
        return cls(int(count), mean, squares)
