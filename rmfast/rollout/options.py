"""How tokens are drawn, and when a sample ends."""

import math
from collections.abc import Sequence
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
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        stop: object = (self.stop,) if isinstance(self.stop, str) else self.stop
        good = isinstance(stop, Sequence) and all(isinstance(s, str) and s for s in stop)
        _check(good, "stop must be texts, none of them empty", stop)
        assert isinstance(stop, Sequence)
        _check(all(map(_is_utf8, stop)), "stop must be text that UTF-8 can hold", stop)
        object.__setattr__(self, "stop", tuple(stop))
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "stop" and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise UserError(f"{field.name} must be a number, got {value!r}")
        for name in ("max_new_tokens", "top_k", "seed"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"{name} must be a whole number, got {getattr(self, name)!r}")
            _check(-(2**63) <= getattr(self, name) < 2**63, f"{name} must fit into 64 bits", getattr(self, name))
        _check(self.max_new_tokens >= 1, "max_new_tokens must be at least 1", self.max_new_tokens)
        possible = self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf
        rule = f"temperature must be 0 (greedy) or at least {LEAST_TEMPERATURE:g}"
        _check(possible, rule, self.temperature)
        _check(self.top_k >= 0, "top_k must be 0 (off) or positive", self.top_k)
        _check(0 < self.top_p <= 1, "top_p must be above 0 and at most 1 (off)", self.top_p)
        _check(0 <= self.min_p <= 1, "min_p must be within 0 (off) and 1", self.min_p)
        positive = 0 < self.repetition_penalty < math.inf
        _check(positive, "repetition_penalty must be positive, 1 for none", self.repetition_penalty)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise UserError(f"{rule}, got {value!r}")
