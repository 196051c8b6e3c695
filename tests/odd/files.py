"""Odd files: a good one of JSON (or JSON lines) of which parts were replaced, left out or cut off."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from tests.odd.values import some


def odd_json(good: Any, seed: int, count: int) -> Iterator[str]:
    """Texts of a file that once held `good`."""
    draw = random.Random(seed)
    for _ in range(count):
        value = copy.deepcopy(good)
        for _ in range(draw.choice((1, 1, 2))):
            value = _changed(value, draw)
        text = json.dumps(value)
        yield text[: draw.randrange(len(text))] if draw.random() < 0.05 and text else text


def _changed(value: Any, draw: random.Random) -> Any:
    """The value with one part of it, at any depth, replaced or taken out."""
    places = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not places or draw.random() < 0.05:
        return some(draw)
    place = draw.choice(places)
    if draw.random() < 0.1:
        del value[place]
    else:
        value[place] = _changed(value[place], draw)
    return value
