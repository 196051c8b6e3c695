"""Prompts on which proxy and gold choose most differently, to read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmfast.data.example import Example
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.suites.result import text


@dataclass(frozen=True)
class Answer:
    """A response and what proxy and gold give it."""

    text: str
    proxy: float
    gold: float


@dataclass(frozen=True)
class Disagreement:
    """The proxy's best response to a prompt, and gold's."""

    prompt: str
    of_proxy: Answer
    of_gold: Answer


def disagreements(
    examples: Sequence[Example], proxy: Sequence[Floats], gold: Sequence[Floats], most: int = 10
) -> list[Disagreement]:
    """Those where gold loses most by the proxy's choice, the worst first; rows with a reward that is not finite are
    left out.

    Args:
        proxy, gold: of each row [N]; of equal ones the first is the best.
    """
    found = []
    for example, of_proxy, of_gold in zip(examples, proxy, gold, strict=True):
        if not np.isfinite(of_proxy + of_gold).all():
            continue
        picked, best = int(np.argmax(of_proxy)), int(np.argmax(of_gold))
        if (lost := float(of_gold[best] - of_gold[picked])) > 0:
            ends = (
                Answer(text(example.responses[place]), float(of_proxy[place]), float(of_gold[place]))
                for place in (picked, best)
            )
            found.append((lost, Disagreement(text(example.prompt or ""), *ends)))
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])[:most]]
