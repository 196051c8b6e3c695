"""Items that share a prompt become one prompt group: the prompt is computed once, and each response once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmfast.data.example import Example
from rmfast.evaluation.suites.base import Item, Result, group_key


@dataclass(frozen=True)
class SharedGroups:
    """`examples` hold every distinct response of every distinct prompt; item i's responses are
    `examples[group[i]].responses[places[i]]`."""

    examples: tuple[Example, ...]
    group: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]


def share(items: Sequence[Item]) -> SharedGroups:
    """Put all items of a prompt together, whatever part of the suite they come from."""
    numbers: dict[str, int] = {}
    firsts: list[Example] = []
    responses: list[dict[str, int]] = []  # a response's text -> its place in the group
    kept: list[list] = []
    group, places = [], []
    for item in items:
        key = group_key(item.example)
        if key not in numbers:
            numbers[key] = len(firsts)
            firsts.append(item.example)
            responses.append({})
            kept.append([])
        g = numbers[key]
        inside = []
        for response in item.example.responses:
            text = repr(response)
            if text not in responses[g]:
                responses[g][text] = len(kept[g])
                kept[g].append(response)
            inside.append(responses[g][text])
        group.append(g)
        places.append(tuple(inside))
    examples = tuple(
        Example(first.prompt, tuple(distinct), tools=first.tools, template_kwargs=first.template_kwargs)
        for first, distinct in zip(firsts, kept, strict=True)
    )
    return SharedGroups(examples, tuple(group), tuple(places))


def results_of(items: Sequence[Item], shared: SharedGroups, rewards: Sequence[np.ndarray]) -> list[Result]:
    """What rewards say of the items.

    Args:
        rewards: of each of the shared groups, [N].
    """
    out = []
    for item, g, places in zip(items, shared.group, shared.places, strict=True):
        of_item = np.asarray(rewards[g], dtype=np.float64)[list(places)]
        edges = item.example.edges
        gaps = of_item[[e.better for e in edges]] - of_item[[e.worse for e in edges]]
        out.append(Result(item, gaps, of_item))
    return out
