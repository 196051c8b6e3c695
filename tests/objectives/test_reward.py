"""The objective and its statistics, against sums over edges by hand; parts of a global batch add up to it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.data.edge_columns import NAMES, EdgeColumns
from rmfast.data.pack import Pack, TokenColumns, empty_pack
from rmfast.models.network import Outputs
from rmfast.objectives.base import Statistics, join_statistics
from rmfast.objectives.reward import RewardObjective
from tests.figures import maxima, sums


def part(pack: Pack, edges: slice, targets: slice) -> Pack:
    some = pack.targets.map(lambda column: column[targets])
    return replace(pack, edges=pack.edges.map(lambda column: column[edges]), targets=some)


@dataclass(frozen=True)
class Totals:
    weight: float
    lm_tokens: int


def made(heads: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Pack, Totals]:
    """Scores [8, M], log-probabilities [5] and six edges; a tie is among them."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(8, heads, generator=g)
    scores[5] = scores[4]
    edges = EdgeColumns(
        better=torch.tensor([0, 2, 4, 6, 7, 3]),
        worse=torch.tensor([1, 3, 5, 7, 6, 0]),
        margin=torch.tensor([0.0, 0.5, 0.0, -1.0, 0.0, 2.0]),
        target=torch.tensor([1.0, 0.9, 1.0, 1.0, 0.3, 1.0]),
        weight=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.0, 0.25]),
    )
    log_prob = -torch.rand(5, generator=g)
    targets = TokenColumns(rows=torch.arange(5), ids=torch.arange(5), response=torch.zeros(5, dtype=torch.int64))
    pack = replace(empty_pack(), is_response=torch.ones(8, dtype=torch.bool), edges=edges, targets=targets)
    return scores.requires_grad_(), log_prob.requires_grad_(), pack, Totals(4.75, 5)


def ranking_by_hand(scores: Tensor, edges: EdgeColumns[Tensor], center: float) -> Tensor:
    """Mean over heads of the weighted mean over edges."""
    total = torch.zeros(())
    for b, w, margin, target, weight in zip(*(getattr(edges, name) for name in NAMES), strict=True):
        d = scores[b] - scores[w] - margin
        loss = -target * F.logsigmoid(d) - (1 - target) * F.logsigmoid(-d) + center * (scores[b] + scores[w]) ** 2
        total = total + weight * loss.mean()
    return total / edges.weight.sum()


def figures(statistics: Statistics) -> dict[str, float]:
    return {name: float(value) for name, value in statistics.sums.items()}


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("center", [0.0, 0.1])
@pytest.mark.parametrize("lm", [0.0, 0.5])
def test_loss_and_gradients(heads: int, center: float, lm: float) -> None:
    scores, log_prob, pack, totals = made(heads)
    loss, statistics = RewardObjective(center=center, lm=lm)(Outputs(scores, log_prob), pack, totals)
    ranking, lm_loss = ranking_by_hand(scores, pack.edges, center), -log_prob.mean()
    expected = ranking + lm * lm_loss
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, (scores, log_prob), allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, (scores, log_prob), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(ours, theirs)
    found = figures(statistics)
    assert found["loss"] == pytest.approx(expected.item())
    assert found["ranking_loss"] == pytest.approx(ranking.item())
    assert found["lm_loss"] == pytest.approx(lm_loss.item() if lm else 0.0)


@pytest.mark.parametrize("heads", [1, 3])
def test_statistics(heads: int) -> None:
    scores, _, pack, totals = made(heads)
    _, statistics = RewardObjective()(Outputs(scores), pack, totals)
    rewards = scores.detach().mean(1).numpy()
    gaps = rewards[pack.edges.better] - rewards[pack.edges.worse]
    found = figures(statistics)
    assert found["correct"] == (gaps > 0).sum() < len(gaps) - (gaps < 0).sum()  # a tie is not correct
    assert found["margin"] == pytest.approx(gaps.sum(), abs=1e-5)
    assert found["reward"] == pytest.approx(rewards.sum(), abs=1e-5)
    assert maxima(statistics).tolist() == pytest.approx([rewards.max(), -rewards.min()])
    assert not sums(statistics).requires_grad and not maxima(statistics).requires_grad


def test_parts_of_a_global_batch_add_up() -> None:
    objective = RewardObjective(center=0.1, lm=0.5)
    scores, log_prob, pack, totals = made(2)
    whole, all_statistics = objective(Outputs(scores, log_prob), pack, totals)
    # Scores of a part keep their numbers here; a pack without work brings one score and no edge.
    first, a = objective(Outputs(scores, log_prob[:2]), part(pack, slice(4), slice(2)), totals)
    second, b = objective(Outputs(scores, log_prob[2:]), part(pack, slice(4, None), slice(2, None)), totals)
    idle, c = objective(Outputs(scores[:1], log_prob[:0]), empty_pack(), totals)
    torch.testing.assert_close(first + second + idle, whole)
    joined = join_statistics([a, b, c], lambda sums: sums, lambda maxima: maxima)
    twice = {**all_statistics.sums, "reward": 2 * all_statistics.sums["reward"]}  # both parts got all responses
    torch.testing.assert_close(joined.sums, twice)
    assert joined.maxima == all_statistics.maxima


@pytest.mark.parametrize("lm", [0.0, 0.5])
def test_a_pack_without_work(lm: float) -> None:
    scores, log_prob, pack, totals = made()
    loss, statistics = RewardObjective(center=0.1, lm=lm)(Outputs(scores[:1], log_prob[:0]), empty_pack(), totals)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and not scores.grad.any()
    assert not sums(statistics).any() and maxima(statistics).tolist() == [-np.inf, -np.inf]


def test_a_batch_without_weight_or_lm_tokens() -> None:
    scores, log_prob, pack, _ = made()
    loss, _ = RewardObjective(lm=0.5)(Outputs(scores, log_prob[:0]), part(pack, slice(0), slice(0)), Totals(0.0, 0))
    assert loss.item() == 0


def test_what_is_not_finite_shows() -> None:
    scores, log_prob, pack, totals = made()
    damaged = scores.detach().clone()
    damaged[2] = torch.nan
    loss, statistics = RewardObjective()(Outputs(damaged, log_prob), pack, totals)
    assert loss.isnan() and statistics.loss.isnan()
