"""From which distribution over the vocabulary tokens are drawn."""

from dataclasses import dataclass

from rmfast.kernels.common import check

LEAST_TEMPERATURE = 1e-5
"""Smaller ones would divide logits out of fp32's range."""


@dataclass(frozen=True)
class Options:
    """How logits become the distribution that is drawn from; the order is that of transformers' processors.

    Args:
        temperature: 0 is greedy. top_k: 0 keeps all. top_p, min_p: 1 and 0 keep all. repetition_penalty: 1 is none.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float

    def check(self, op: str) -> None:
        """Raise `ValueError` for what no distribution has."""
        temperature, penalty = self.temperature, self.repetition_penalty
        check(
            temperature == 0 or LEAST_TEMPERATURE <= temperature < float("inf"), op,
            f"temperature must be 0 (greedy) or at least {LEAST_TEMPERATURE:g}, got {temperature}",
        )  # fmt: skip
        whole = isinstance(self.top_k, int) and 0 <= self.top_k < 2**63
        check(whole, op, f"top_k must be 0 (all) or more, a whole number of 64 bits, got {self.top_k}")
        check(0 < self.top_p <= 1, op, f"top_p must be above 0 and at most 1, got {self.top_p}")
        check(0 <= self.min_p <= 1, op, f"min_p must be from 0 to 1, got {self.min_p}")
        check(0 < penalty < float("inf"), op, f"repetition_penalty must be positive, got {penalty}")
