"""How long a pipeline's stages compute while it samples, by playing what batches ask for in the order that it runs."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from rmfast.rollout.batch import Batch
from rmfast.rollout.options import SampleOptions
from rmfast.rollout.sampler import Sampler
from rmfast.rollout.stages import drafts_of
from rmfast.rollout.steps import Begin, Step, Steps
from tests.rollout.test_batch import Checking, requests

# In products of one token and one layer of SmolLM2-135M: 4 d^2 (grouped heads) + 3 d f, and its table of 49,152 rows.
LAYERS, HEAD = 30, 49152 * 576 / (2 * 576**2 * (1 + 1 / 3) + 3 * 576 * 1536)


def asked(monkeypatch: pytest.MonkeyPatch, count: int) -> list[tuple[int, int, int]]:
    """(batch, tokens that the layers compute, rows of the head) of all works, in the order in which stages run them."""
    monkeypatch.setattr(Checking, "pool", lambda self, tokens: _Pool(tokens))
    prompts = requests(random.Random(0), 32)
    options = SampleOptions(max_new_tokens=12, seed=1)
    settings = Sampler(Checking(), options, ends=range(2), rows=4 * count).settings
    batches: list[Batch] = []
    for _ in range(count):
        first = batches[0] if batches else None
        batches.append(Batch(settings, prompts, [12] * len(prompts), 2, others=first, batches=count))
    found: list[tuple[int, int, int]] = []
    numbers = {id(batch.pool): number for number, batch in enumerate(batches)}
    call = Steps.__call__

    def noted(self: Steps, work: Begin | Step) -> Any:
        prompts = len(work.sizes) if isinstance(work, Begin) else work.rows
        found.append((numbers[id(self.pool)], work.tokens, prompts))
        return call(self, work)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "__call__", noted)
        assert len(dict(drafts_of(batches, lambda: False, None))) == len(prompts)
    return found


class _Pool(int):
    """Its size, and an identity."""


def busy(works: Sequence[tuple[int, int, int]], split: Sequence[int]) -> float:
    """The share of the time that the heaviest stage computes. A batch's next work begins when the last one is drawn."""
    free, drawn, spent = [0.0] * len(split), dict[int, float](), [0.0] * len(split)
    for batch, tokens, rows in works:
        ready = drawn.get(batch, 0.0)
        for stage, layers in enumerate(split):
            cost = layers * tokens + (HEAD * rows if stage == len(split) - 1 else 0.0)
            ready = free[stage] = max(free[stage], ready) + cost
            spent[stage] += cost
        drawn[batch] = ready
    return max(spent) / max(free)


def test_two_stages_compute_most_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of mixed length, answers of 1 to 12 tokens; the head is as much work as several layers."""
    even = (LAYERS + round(HEAD)) // 2
    split = (even, LAYERS - even)
    two, eight = (asked(monkeypatch, batches) for batches in (2, 8))
    assert 0.7 < busy(two, split) < busy(eight, split) and busy(eight, split) >= 0.9
    assert busy([(0, tokens, rows) for _, tokens, rows in two], split) < 0.6  # were they one batch
