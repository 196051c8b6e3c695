"""Log-probabilities and entropies over a vocabulary that ranks share equal those of the whole one, with gradients."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rmfast.models.layers import NativeLayers
from rmfast.parallel.world import World
from tests.runs import fork_ranks

pytest.importorskip("megatron.core")
pytestmark = pytest.mark.slow
TOKENS, WIDTH = 9, 6
CASES = [
    (512, None, 1.0, None),
    (600, None, 0.6, 20.0),
    (600, 530, 1.0, None),
    (600, 300, 0.6, None),
    (600, 200, 1.0, 20.0),
]
"""Vocabulary, how many ids count (of the last, none on the second rank), temperature and soft cap."""


def problem(vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a table, targets, and gradients of log-probabilities and entropies; logits to about 60."""
    g = torch.Generator().manual_seed(vocabulary)
    hidden, table = (torch.randn(n, WIDTH, generator=g, dtype=torch.float64) * 4 for n in (TOKENS, vocabulary))
    targets = torch.arange(TOKENS) * (vocabulary - 1) // (TOKENS - 1)  # the first id and the last are among them
    return hidden, table, targets, torch.randn(2, TOKENS, generator=g, dtype=torch.float64)


def whole(vocabulary: int, ids: int | None, temperature: float, cap: float | None) -> list[Tensor]:
    hidden, table, targets, grads = problem(vocabulary)
    leaves = [hidden.requires_grad_(), table.requires_grad_()]
    targets = targets.clamp(max=(ids or vocabulary) - 1)
    options: dict[str, Any] = {"ids": ids, "temperature": temperature, "softcap": cap, "impl": "reference"}
    out = NativeLayers().log_prob(hidden, table, targets, **options)
    return [*(x.detach() for x in out), *torch.autograd.grad(out, leaves, list(grads))]


def shared(world: World, vocabulary: int, ids: int | None, temperature: float, cap: float | None) -> list[Tensor]:
    """What this rank has: its part of the table's gradient."""
    from rmfast.parallel.megatron.layers import TensorParallel

    hidden, table, targets, grads = problem(vocabulary)
    factory = TensorParallel(world, sequence=False)
    held = factory.output(WIDTH, vocabulary)
    size = factory.tokens(vocabulary)
    rows = table[world.rank * size : (world.rank + 1) * size]
    held.weight.data = torch.full((size, WIDTH), torch.nan, dtype=torch.float64)  # beyond the end nothing is read
    held.weight.data[: len(rows)] = rows
    targets = targets.clamp(max=(ids or vocabulary) - 1)
    options: dict[str, Any] = {"ids": ids, "temperature": temperature, "softcap": cap, "impl": "reference"}
    out = factory.log_prob(hidden.requires_grad_(), held.weight, targets, **options)
    got = torch.autograd.grad(out, [hidden, held.weight], list(grads), materialize_grads=True)
    return [*(x.detach() for x in out), got[0], got[1][: len(rows)]]


def worker(folder: Path) -> None:
    from tests.megatron.standin import install

    install()
    with World() as world:
        found = [shared(world, *case) for case in CASES]
        torch.save(found, folder / f"found{world.rank}")


def test_a_shared_vocabulary(tmp_path: Path) -> None:
    assert fork_ranks(2, partial(worker, tmp_path)) == [0, 0]
    parts = [torch.load(tmp_path / f"found{rank}") for rank in range(2)]
    truths = [whole(*case) for case in CASES]
    for (*_, cap), first, second, truth in zip(CASES, *parts, truths, strict=True):
        assert cap is not None or truth[1].min() < 0.1 < 0.5 < truth[1].max()
        for rank in (first, second):
            torch.testing.assert_close(rank[:3], truth[:3])
        torch.testing.assert_close(torch.cat((first[3], second[3])), truth[3])
