"""The ranking loss equals cross-entropy written out in fp64, and keeps the identities of the papers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import ranking_loss

FLOATS = st.floats(-20, 20)


def by_hand(
    scores: list[float], edges: list[tuple[int, int, float, float, float]], center: float, total: float | None = None
) -> float:
    """Weighted mean of -t log sigmoid(d) - (1 - t) log(1 - sigmoid(d)) + center (b + w)^2, edge by edge."""
    loss = weights = 0.0
    for better, worse, margin, target, weight in edges:
        b, w = scores[better], scores[worse]
        d = b - w - margin
        minus_log_p = math.log1p(math.exp(-d))
        minus_log_q = math.log1p(math.exp(d))
        loss += weight * (target * minus_log_p + (1 - target) * minus_log_q + center * (b + w) ** 2)
        weights += weight
    weights = weights if total is None else total
    return loss / weights if weights else 0.0


def tensors(edges: list[tuple[int, int, float, float, float]]) -> dict[str, Tensor]:
    names = ("better", "worse", "margin", "target", "weight")
    dtypes = (torch.int64, torch.int64, torch.float64, torch.float64, torch.float64)
    return {n: torch.tensor([e[i] for e in edges], dtype=d) for i, (n, d) in enumerate(zip(names, dtypes, strict=True))}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(FLOATS, min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), FLOATS, st.floats(0, 1), st.floats(0, 3)), max_size=8),
    st.sampled_from([0.0, 0.01]),
    st.sampled_from([None, 0.5, 7.0]),
)
def test_against_cross_entropy(
    scores: list[float], edges: list[tuple[int, int, float, float, float]], center: float, total: float | None
) -> None:
    edges = [(b % len(scores), w % len(scores), m, t, weight) for b, w, m, t, weight in edges]
    loss = ranking_loss(torch.tensor(scores, dtype=torch.float64), **tensors(edges), center=center, total_weight=total)
    assert loss.shape == () and loss.dtype == torch.float64
    # torch's softplus is linear beyond 20, which leaves out exp(-20) = 2e-9 of each edge.
    most = 3e-9 * (1 if total is None else sum(e[4] for e in edges) / total)
    assert loss.item() == pytest.approx(by_hand(scores, edges, center, total), rel=1e-9, abs=most)


@pytest.mark.parametrize("heads", [(), (3,)], ids=["one head", "three heads"])
@pytest.mark.parametrize("per_head", [False, True], ids=["[E]", "[M, E]"])
def test_gradcheck(heads: tuple[int, ...], per_head: bool) -> None:
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(*heads, 5, generator=g, dtype=torch.float64, requires_grad=True)
    shape = (*heads, 4) if per_head else (4,)
    margin, target, weight = (torch.rand(shape, generator=g, dtype=torch.float64) for _ in range(3))
    better, worse = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 4, 1])

    def loss(scores: Tensor) -> Tensor:
        return ranking_loss(scores, better, worse, margin=margin, target=target, weight=weight, center=0.1)

    assert loss(scores).shape == heads
    assert torch.autograd.gradcheck(loss, scores)


def test_heads_are_separate_losses() -> None:
    g = torch.Generator().manual_seed(1)
    scores, weight = torch.randn(3, 6, generator=g), torch.rand(3, 4, generator=g)
    better, worse = torch.tensor([0, 2, 4, 5]), torch.tensor([1, 3, 5, 0])
    losses = ranking_loss(scores, better, worse, weight=weight, target=0.9)
    for head in range(3):
        alone = ranking_loss(scores[head], better, worse, weight=weight[head], target=0.9)
        torch.testing.assert_close(losses[head], alone)


def pair_loss(d: float, **options: float) -> tuple[float, float]:
    """Loss and its derivative in d, of one pair whose scores differ by d."""
    scores = torch.tensor([d, 0.0], dtype=torch.float64, requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0]), torch.tensor([1]), **options)
    loss.backward()
    assert scores.grad is not None and scores.grad[0] == -scores.grad[1]
    return loss.item(), scores.grad[0].item()


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_label_smoothing_is_least_at_its_log_odds(alpha: float) -> None:
    at = math.log((1 - alpha) / alpha)
    least, slope = pair_loss(at, target=1 - alpha)
    entropy = -alpha * math.log(alpha) - (1 - alpha) * math.log(1 - alpha)
    assert slope == pytest.approx(0, abs=1e-12) and least == pytest.approx(entropy)
    assert pair_loss(at - 0.01, target=1 - alpha)[0] > least < pair_loss(at + 0.01, target=1 - alpha)[0]


@pytest.mark.parametrize("margin", [-3.0, 0.0, 0.7, 9.0])
def test_margin(margin: float) -> None:
    loss, slope = pair_loss(margin, margin=margin)
    assert loss == pytest.approx(math.log(2)) and slope == pytest.approx(-0.5)
    assert pair_loss(margin - 1, margin=margin)[0] > loss > pair_loss(margin + 1, margin=margin)[0]


def test_a_flip_is_a_swap() -> None:
    scores = torch.tensor([1.5, -0.5, 0.25], dtype=torch.float64)
    better, worse, margin = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0.5, -1.0]).double()
    flipped = ranking_loss(scores, better, worse, margin=margin, target=0.0, center=0.1)
    swapped = ranking_loss(scores, worse, better, margin=-margin, target=1.0, center=0.1)
    torch.testing.assert_close(flipped, swapped)


@pytest.mark.parametrize("d", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", [1.0, 0.9, 0.0])
def test_large_differences(d: float, dtype: torch.dtype, target: float) -> None:
    scores = torch.tensor([d, 0.0], dtype=dtype, requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0]), torch.tensor([1]), target=target)
    loss.backward()
    assert scores.grad is not None
    # Far from 0, softplus(-d) is max(-d, 0) to rounding, and its slope is 0 or -1.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert loss.item() == pytest.approx(max(-d, 0) + (1 - target) * d, rel=tolerance, abs=1e-30 + tolerance * 100)
    assert scores.grad[0].item() == pytest.approx((-1 if d < 0 else 0) + 1 - target, abs=1e-6)


def test_edges_of_weight_zero_add_nothing() -> None:
    scores = torch.tensor([1.0, 0.0, torch.inf, 2.0], requires_grad=True)
    better, worse = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    loss = ranking_loss(scores, better, worse, weight=torch.tensor([2.0, 0.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert scores.grad is not None and scores.grad[[2, 3]].tolist() == [0, 0]
    assert scores.grad[0] == -scores.grad[1] != 0


@pytest.mark.parametrize("heads", [(), (2,)], ids=["one head", "two heads"])
def test_no_edges_or_no_weight_is_zero(heads: tuple[int, ...]) -> None:
    scores = torch.randn(*heads, 3, requires_grad=True)
    none, one, two = torch.empty(0, dtype=torch.int64), torch.tensor([0]), torch.tensor([1])
    for better, worse, weight, total in [
        (none, none, None, None),
        (none, none, torch.empty(0), 0.0),
        (none, none, None, 12.0),
        (one, two, torch.zeros(1), None),
        (one, two, torch.zeros(1), 0.0),
        (one, two, torch.zeros(1), torch.zeros(())),
    ]:
        loss = ranking_loss(scores, better, worse, weight=weight, center=0.1, total_weight=total)
        (grad,) = torch.autograd.grad(loss.sum(), scores)
        assert loss.shape == heads and not loss.any() and not grad.any()


@pytest.mark.parametrize("total", [float, lambda x: x], ids=["number", "tensor"])
def test_parts_of_a_batch_add_up(total: type) -> None:
    g = torch.Generator().manual_seed(2)
    scores, weight = torch.randn(8, generator=g, dtype=torch.float64), torch.rand(4, generator=g, dtype=torch.float64)
    better, worse = torch.arange(0, 8, 2), torch.arange(1, 8, 2)
    whole = ranking_loss(scores, better, worse, weight=weight)
    parts = [
        ranking_loss(scores, better[s], worse[s], weight=weight[s], total_weight=total(weight.sum()))
        for s in (slice(0, 1), slice(1, 4), slice(4, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_result_has_the_scores_precision() -> None:
    better, worse = torch.tensor([0], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    values = torch.tensor([0.5], dtype=torch.float64)
    for dtype, expected in [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)]:
        scores = torch.tensor([3.0, 1.0], dtype=dtype)
        loss = ranking_loss(scores, better, worse, margin=values, target=values, weight=values)
        assert loss.dtype == expected


def test_non_contiguous_inputs() -> None:
    scores = torch.randn(6, 2).T
    better, worse = (torch.arange(12).reshape(6, 2) % 6).unbind(1)
    weight = torch.rand(6, 2).T
    assert not scores.is_contiguous() and not better.is_contiguous() and not weight.is_contiguous()
    expected = ranking_loss(scores.contiguous(), better.contiguous(), worse.contiguous(), weight=weight.contiguous())
    torch.testing.assert_close(ranking_loss(scores, better, worse, weight=weight), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(1, 2, 3)}, "scores must be"),
        ({"worse": torch.tensor([1, 0])}, "one length"),
        ({"better": torch.tensor([[0]]), "worse": torch.tensor([[1]])}, "one length"),
        ({"better": torch.tensor([0.0])}, "integers"),
        ({"margin": torch.zeros(2)}, "margin must be"),
        ({"target": torch.zeros(1, 1, 1)}, "target must be"),
        ({"weight": torch.zeros(3, 1)}, "weight must be"),
        ({"impl": "fast"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    arguments = {"scores": torch.zeros(2), "better": torch.tensor([0]), "worse": torch.tensor([1])} | change
    with pytest.raises(ValueError, match=f"ranking_loss: .*{message}"):
        ranking_loss(**arguments)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16])
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_indices_are_int32_or_int64(impl: str, dtype: torch.dtype) -> None:
    better, worse = torch.tensor([0], dtype=dtype), torch.tensor([1])
    for ends in ((better, worse), (worse, better)):
        with pytest.raises(ValueError, match="ranking_loss: better and worse must be integers"):
            ranking_loss(torch.zeros(2), *ends, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_total_is_a_number_or_one_for_each_head(impl: str) -> None:
    scores, better, worse = torch.randn(2, 4), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
    for inputs in (scores, scores[0]):
        whole = ranking_loss(inputs, better, worse, total_weight=6.0, impl=impl)
        for total in (torch.tensor(6.0), torch.tensor([6.0]), torch.tensor([[6.0]])):
            got = ranking_loss(inputs, better, worse, total_weight=total, impl=impl)
            assert got.shape == whole.shape and torch.equal(got, whole)
        with pytest.raises(ValueError, match="ranking_loss: total_weight must be"):
            ranking_loss(inputs, better, worse, total_weight=torch.ones(3), impl=impl)
