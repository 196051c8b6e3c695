"""The difference objective against loops over pairs in fp64; parts of a global batch add up to it."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rmfast.models.network import Outputs
from rmfast.objectives.base import Statistics
from rmfast.objectives.meta import DifferenceObjective
from tests.figures import sums


@dataclass(frozen=True)
class Samples:
    group: Tensor


@dataclass(frozen=True)
class Totals:
    groups: int
    weight: float = 0.0
    lm_tokens: int = 0


def samples(*sizes: int) -> Samples:
    return Samples(torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)))


def by_hand(scores: Tensor, group: Tensor, prompts: int, normaliser: str) -> Tensor:
    """Part II, equation 11, and its mean over prompts and heads."""
    total = torch.zeros((), dtype=torch.float64)
    for head in scores.unbind(1):
        for g in group.unique():
            rewards = head[group == g]
            k = len(rewards)
            pairs = k * k / 2 if normaliser == "k2" else max(k * (k - 1) / 2, 1)
            for i, j in itertools.combinations(range(k), 2):
                total = total + torch.sigmoid((rewards[i] - rewards[j]).abs()) / pairs
    return total / scores.shape[1] / prompts


def variance_by_hand(rewards: list[float], group: list[int], prompts: int) -> float:
    total = 0.0
    for g in set(group):
        own = [r for r, of in zip(rewards, group, strict=True) if of == g]
        d = [a - b for i, a in enumerate(own) for j, b in enumerate(own) if i != j]
        total += sum(x * x for x in d) / len(d) - (sum(d) / len(d)) ** 2 if d else 0.0
    return total / prompts


def figures(statistics: Statistics) -> dict[str, float]:
    return {name: float(value) for name, value in statistics.sums.items()}


def made(count: int, heads: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, heads, generator=generator, dtype=torch.float64).mul_(1.5).requires_grad_()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("normaliser", ["k2", "pairs"])
def test_j_its_gradient_and_the_variance(heads: int, normaliser: str) -> None:
    pack = samples(5, 2, 1, 3)
    scores = made(11, heads)
    loss, statistics = DifferenceObjective(normaliser=normaliser)(Outputs(scores), pack, Totals(4))
    expected = by_hand(scores, pack.group, 4, normaliser)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(loss, scores), torch.autograd.grad(expected, scores)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    assert theirs.abs().max() > 1e-3
    found = figures(statistics)
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-12)
    rewards = scores.detach().mean(1).tolist()
    assert found["variance"] == pytest.approx(variance_by_hand(rewards, pack.group.tolist(), 4), rel=1e-12)
    assert not sums(statistics).requires_grad and not statistics.maxima


def test_values_that_the_paper_gives() -> None:
    def j(*rewards: float) -> float:
        scores = torch.tensor(rewards, dtype=torch.float64)[:, None]
        return DifferenceObjective()(Outputs(scores), samples(len(rewards)), Totals(1))[0].item()

    assert j(0.3, 0.3) == 0.25
    assert 0.4999 < j(0.0, 50.0) <= 0.5
    assert j(*[1.0] * 5) == pytest.approx(0.4, abs=1e-15)
    assert 0.4 < j(0, 1, 2, 3, 4) < 0.8
    assert j(0, 60, 120, 180, 240) == pytest.approx(0.8)


def test_parts_of_a_global_batch_add_up() -> None:
    objective = DifferenceObjective()
    scores, sizes = made(12, 2), (4, 3, 2, 3)
    whole, everything = objective(Outputs(scores), samples(*sizes), Totals(4))
    idle = objective(Outputs(scores[:1] * 0), samples(1), Totals(4))  # a pack without work scores one token
    # Padding scores tokens too, each a group of its own.
    padded = torch.cat((scores[7:], scores[:1].expand(4, 2)))
    parts = [objective(Outputs(scores[:7]), samples(4, 3), Totals(4)), idle]
    parts += [objective(Outputs(padded), samples(2, 3, 1, 1, 1, 1), Totals(4))]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole, rtol=1e-12, atol=0)
    total = torch.stack([sums(statistics) for _, statistics in parts]).sum(0)
    torch.testing.assert_close(total, sums(everything), rtol=1e-12, atol=0)
    assert not sums(idle[1]).any()


def test_what_is_not_finite_shows() -> None:
    scores = made(5).detach().clone()
    scores[2] = torch.nan
    loss, statistics = DifferenceObjective()(Outputs(scores), samples(2, 3), Totals(2))
    assert loss.isnan() and statistics.loss.isnan()
