"""The coefficient of the KL penalty, fixed or adaptive."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_ERROR = 0.2
"""Bound of the controller's relative error (Ziegler et al. 2019)."""


@dataclass(frozen=True, kw_only=True)
class KLCoefficient:
    """The weight of the penalty for the distance to the reference.

    Args:
        value: at present.
        target: KL of an answer, the sum over its tokens, that is aimed at; None for a fixed coefficient.
        horizon: answers over which an error of 1 would double the coefficient.
    """

    value: float
    target: float | None = None
    horizon: float = 10_000.0

    def updated(self, kl: float, answers: int) -> "KLCoefficient":
        """The coefficient after a step: value (1 + error answers / horizon), where error = KL / target - 1 within
        +-0.2. Source: Ziegler et al. 2019, section 2.2, in the form of its code.

        Args:
            kl: mean over the step's answers, of all ranks, of the log-ratio summed over an answer's tokens.
            answers: how many they are. Without any nothing changes.

        Raises:
            ValueError: the KL is not finite; or the horizon is so short that the coefficient could reach 0 in a step.
        """
        if self.target is None or not answers:
            return self
        if not math.isfinite(kl):
            raise ValueError(f"kl_coefficient: the KL of a step is {kl}")
        if MAX_ERROR * answers >= self.horizon:
            raise ValueError(
                f"kl_coefficient: a horizon of {self.horizon:g} is too short for {answers} answers a step; "
                f"it must be above {MAX_ERROR * answers:g}"
            )
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        return replace(self, value=self.value * (1 + error * answers / self.horizon))

    @property
    def state(self) -> Tensor:
        """float64 [1]: the value."""
        return torch.tensor([self.value], dtype=torch.float64)

    def with_state(self, state: Tensor) -> "KLCoefficient":
        """The coefficient as it was when `state` was taken, to the bit."""
        return replace(self, value=float(state[0]))
