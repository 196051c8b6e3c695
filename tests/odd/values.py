"""Odd but harmless values, of which the generators beside this file make rows, configs, commands and files."""

import copy
import json
import random
from typing import Any

SURROGATE = "half \ud83d of a pair"
DEEP: Any = json.loads("[" * 60 + "]" * 60)
NUMBERS = (
    0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e4, 10_001, -10_001.5, 1e39, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 1e308,
)  # fmt: skip
NOT_FINITE = (float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", " ", "\n", "\0", "a\0b", SURROGATE, "\x1b[31mred", "\r", "\u2028", "\u202ereversed", "A" * 300, "null", "NaN",
    "1e999", "{% raw %}", "[{", '{"role": "user"}', "[{'role': 'user', 'content': 'x'}]", "0x10", "12:30", "~",
    "\ufeff",
)  # fmt: skip
NESTED = (
    [], {}, [[]], [{}], [None], {"": ""}, {"a": {"b": {}}}, [1, "a", None, [True]], DEEP, [[1, 2], [3]], ["x"] * 40,
    {"role": "user"}, [{"role": "user", "content": None}], [{"role": 1, "content": 2}], {"role": [], "content": [1]},
)  # fmt: skip
VALUES: tuple[Any, ...] = (*NUMBERS, *NOT_FINITE, *TEXTS, *NESTED, True, False, None)
"""Of every type that JSON has."""


def some(draw: random.Random) -> Any:
    """One of `VALUES`, or now and then a list or an object of some."""
    if draw.random() < 0.85:
        return copy.deepcopy(draw.choice(VALUES))  # which the caller may change further
    items = [copy.deepcopy(draw.choice(VALUES)) for _ in range(draw.randint(0, 3))]
    return items if draw.random() < 0.5 else {str(draw.choice(TEXTS)): item for item in items}
