"""How tokens are drawn, and when a sample ends."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from rmfast.errors import UserError
from rmfast.kernels.draw_tokens.options import LEAST_TEMPERATURE

StopReason = Literal["eos", "stop", "length"]
"""Why a sample ended: an end-of-sequence token, a stop string, or no room for another token."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How tokens are drawn, in the order in which transformers applies it.

    Args:
        max_new_tokens: of a sample, its eos included.
        repetition_penalty: logits of tokens in prompt or answer are divided by it where positive, multiplied otherwise;
            1 for none. What is drawn then depends on more than the policy's distribution.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens, and those as likely as the last of them; 0 for all.
        top_p: only the likeliest tokens: each while those before it hold less probability than top_p.
        min_p: only tokens at least min_p times as likely as the likeliest.
        seed: of the noise.
        stop: texts that end a sample.

    Raises:
        UserError: a value out of range, by name.
    """

    max_new_tokens: int = 256
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "stop" and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{field.name} must be a number, got {value!r}")
        for name in ("max_new_tokens", "top_k", "seed"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        _check(self.max_new_tokens >= 1, "max_new_tokens must be at least 1", self.max_new_tokens)
        warm = self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf
        _check(warm, f"temperature must be 0 (greedy) or at least {LEAST_TEMPERATURE:g}", self.temperature)
        _check(0 <= self.top_k < 2**63, "top_k must be 0 (off) or positive, and fit into 64 bits", self.top_k)
        _check(0 < self.top_p <= 1, "top_p must be above 0 and at most 1 (off)", self.top_p)
        _check(0 <= self.min_p <= 1, "min_p must be within 0 (off) and 1", self.min_p)
        positive = 0 < self.repetition_penalty < math.inf
        _check(positive, "repetition_penalty must be positive, 1 for none", self.repetition_penalty)
        _check(-(2**63) <= self.seed < 2**63, "seed must fit into 64 bits", self.seed)
        _check(all(isinstance(s, str) and s for s in self.stop), "stop must be texts, none of them empty", self.stop)


def _check(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise UserError(f"{rule}, got {value!r}")
