"""The ranking loss's kernels against fp64: values, gradients, many edges on one score, weights of 0, bad indices."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import ranking_loss
from rmfast.kernels.launch import recording
from tests.kernels.harness import DEVICE, assert_exact, compiles, poisoned, registered, run

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def uniform(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, device=DEVICE).to(dtype)


def scored(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype).requires_grad_()


def edges(count: int, width: int) -> list[Tensor]:
    return [torch.randint(max(width, 1), (count,), device=DEVICE) for _ in range(2)]


def loss(impl: str, *inputs: Tensor, **options: Any) -> Tensor:
    scores, better, worse, *values = inputs
    names = ("margin", "target", "weight", "total_weight")
    return ranking_loss(scores, better, worse, impl=impl, **dict(zip(names, values, strict=False)), **options)


def by_hand(scores: Tensor, better: Tensor, worse: Tensor, *values: Tensor, center: float) -> Tensor:
    """Binary cross-entropy with logits, head by head."""
    margin, target, weight = (v.expand(*scores.shape[:-1], len(better)) for v in values)
    losses = []
    for h in range(len(scores)):
        b, w = scores[h][better], scores[h][worse]
        bce = torch.nn.functional.binary_cross_entropy_with_logits(b - w - margin[h], target[h], reduction="none")
        each = weight[h] * (bce + center * (b + w) ** 2)
        losses.append(each.sum() / weight[h].sum() if len(better) else each.sum())
    return torch.stack(losses)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(0, 40),
    width=st.sampled_from([1, 2, 9, 30]),
    heads=st.sampled_from([1, 3]),
    shape=st.sampled_from(["", "E", "ME"]),
    scale=st.sampled_from([0.1, 3.0, 1e4]),
    center=st.sampled_from([0.0, 0.01]),
)
def test_values_and_gradients(
    dtype: torch.dtype, count: int, width: int, heads: int, shape: str, scale: float, center: float
) -> None:
    scores = scored(heads, width, dtype=dtype, scale=scale)
    size = {"": (), "E": (count,), "ME": (heads, count)}[shape]
    values = [uniform(*size, dtype=torch.float64) for _ in range(3)]
    assert_exact(
        partial(loss, center=center),
        [scores, *edges(count, width), *values],
        grads=[torch.randn(heads, device=DEVICE)],
        truth=partial(by_hand, center=center),
        scale=0.1,  # edges of a score with itself cancel
    )


@pytest.mark.parametrize("values", [{}, {"margin": 0.5, "target": 0.9}, {"weight": 0.3, "total_weight": 7.0}])
def test_numbers_for_values(values: dict[str, float]) -> None:
    for dtype in (torch.float64, torch.float32):
        inputs = [scored(9, dtype=dtype), *edges(37, 9)]
        assert_exact(partial(loss, **values), inputs, grads=[torch.ones((), device=DEVICE)])


def test_numbers_are_data_and_compile_no_new_kernel() -> None:
    scores, ends = scored(2, 9), edges(37, 9)
    options = []
    for number in (0.25, 0.75):
        with recording((9, 0)) as launches:
            loss("triton", scores, *ends, margin=number, target=number, weight=number, center=number)
        options.append([launch.options for launch in launches])
        numbers = [x for launch in launches for x in launch.arguments if isinstance(x, float)]
        assert not numbers
    assert options[0] == options[1]


def test_sums_of_many_blocks() -> None:
    inputs = [scored(9), *edges(1100, 9), *[uniform(1100) for _ in range(3)]]
    assert_exact(partial(loss, center=0.1), inputs, grads=[torch.ones((), device=DEVICE)])


@pytest.mark.parametrize("d", [20.0, 40.0, 80.0])
def test_small_losses_are_not_lost(d: float) -> None:
    scores = torch.tensor([d, 0.0], device=DEVICE).requires_grad_()
    ends = torch.tensor([0], device=DEVICE), torch.tensor([1], device=DEVICE)
    got, grad = run(partial(loss, "triton"), [scores, *ends], [torch.ones((), device=DEVICE)])
    assert [got.item(), grad[1].item()] == pytest.approx([math.exp(-d)] * 2, rel=1e-4, abs=0)


def test_totals_of_each_head() -> None:
    values = [torch.zeros((), device=DEVICE), torch.ones(5, device=DEVICE), uniform(2, 5)]
    total = torch.tensor([3.0, 0.0], device=DEVICE)
    inputs = [scored(2, 4), *edges(5, 4), *values, total]
    assert_exact(loss, inputs, grads=[torch.ones(2, device=DEVICE)])
    losses, grad = run(partial(loss, "triton"), inputs, [torch.ones(2, device=DEVICE)])
    assert losses[0] > 0 and losses[1] == 0 and not grad[1].any()


def test_a_score_of_many_edges_and_scores_of_none() -> None:
    better, worse = torch.full((70,), 3, device=DEVICE), torch.arange(70, device=DEVICE) % 20
    scores = scored(40)
    assert_exact(loss, [scores, better, worse], grads=[torch.ones((), device=DEVICE)])
    _, grad = run(partial(loss, "triton"), [scores, better, worse], [torch.ones((), device=DEVICE)])
    assert not grad[20:].any() and grad[:20].all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_edges_of_weight_zero_are_not_there(impl: str, bad: float) -> None:
    scores, (better, worse) = scored(9), edges(20, 8)
    values = [uniform(20), uniform(20), uniform(20) + 0.1]
    one = [torch.ones((), device=DEVICE)]
    good = run(partial(loss, impl, center=0.1), [scores, better, worse, *values], one)
    extra = torch.tensor([8, 0, 8], device=DEVICE), torch.tensor([1, 8, 8], device=DEVICE)
    with torch.no_grad():
        scores[8] = bad
    more = [torch.cat(pair) for pair in zip((better, worse), extra, strict=True)]
    odd = [
        torch.full((3,), bad, device=DEVICE),
        torch.full((3,), bad, device=DEVICE),
        torch.zeros(3, device=DEVICE),
    ]
    more += [torch.cat(pair) for pair in zip(values, odd, strict=True)]
    for a, b in zip(good, run(partial(loss, impl, center=0.1), [scores, *more], one), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_score_spoils_only_its_neighbours(bad: float) -> None:
    scores = scored(6)
    with torch.no_grad():
        scores[0] = bad
    better, worse = torch.tensor([0, 2, 3], device=DEVICE), torch.tensor([1, 3, 4], device=DEVICE)
    assert_exact(loss, [scores, better, worse], grads=[torch.ones((), device=DEVICE)])


@pytest.mark.parametrize("bad", [-1, 5, 2**40, -(2**62)])
def test_an_index_outside_reads_nothing(bad: int) -> None:
    storage = scored(7).detach()
    scores = storage[1:6].requires_grad_()
    better, worse = torch.tensor([0, bad, 2], device=DEVICE), torch.tensor([1, 3, 4], device=DEVICE)
    got, grad = run(partial(loss, "triton"), [scores, better, worse], [torch.ones((), device=DEVICE)])
    assert got.isnan() and grad[3].isnan() and grad[[0, 1, 2, 4]].isfinite().all()
    weight = torch.tensor([1.0, 0.0, 1.0], device=DEVICE)
    zero = torch.zeros((), device=DEVICE)
    some = run(partial(loss, "triton"), [scores, better, worse, zero, zero, weight], [torch.ones((), device=DEVICE)])
    assert all(x.isfinite().all() for x in some)


def test_no_edges_no_scores_no_heads() -> None:
    for shape in ((4,), (0,), (3, 4), (0, 4)):
        scores, none = scored(*shape), torch.empty(0, dtype=torch.int64, device=DEVICE)
        with poisoned():
            got, grad = run(partial(loss, "triton"), [scores, none, none], [torch.ones(shape[:-1], device=DEVICE)])
        assert got.shape == shape[:-1] and not got.any() and grad.shape == shape and not grad.any()


def test_strided() -> None:
    scores, ends = scored(12, 3), torch.randint(6, (10, 2), device=DEVICE).to(torch.int32)
    assert_exact(
        lambda impl, s, e, w: loss(impl, s[::2].T, e[:, 0], e[:, 1], weight=w.T),
        [scores, ends, uniform(10, 3)],
        grads=[torch.randn(3, device=DEVICE)],
    )


def test_gradcheck_and_no_second_derivative() -> None:
    scores, (better, worse) = scored(2, 5, dtype=torch.float64), edges(20, 5)
    values = [uniform(20, dtype=torch.float64) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda s: loss("triton", s, better, worse, *values, center=0.1), scores)
    (grad,) = torch.autograd.grad(loss("triton", scores, better, worse).sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(loss("triton", scores, better, worse).sum() + grad.square().sum(), scores)


def test_gradients_of_pairs_sum_to_zero_and_a_flip_is_a_swap() -> None:
    scores, (better, worse) = scored(2, 9, dtype=torch.float64), edges(33, 9)
    one = [torch.ones(2, device=DEVICE)]
    flip = run(partial(loss, "triton", target=0.0, margin=0.5), [scores, better, worse], one)
    swap = run(partial(loss, "triton", target=1.0, margin=-0.5), [scores, worse, better], one)
    for a, b in zip(flip, swap, strict=True):
        torch.testing.assert_close(a, b)
    assert flip[1].abs().max() > 1e-3 and flip[1].sum(-1).abs().max() < 1e-12


def test_registration() -> None:
    scores, (better, worse) = scored(2, 6), edges(5, 6)
    op = torch.ops.rmfast.ranking_loss.default
    registered(op, scores, better, worse, None, 0.5, uniform(5), 0.0, uniform(2, 5), 0.0, 0.1, None)
    registered(op, scores, better, worse, None, 0.5, None, 1.0, None, 1.0, 0.0, uniform())
    compiles(lambda impl, s: loss(impl, s, better, worse, target=uniform(5) * 0 + 0.9, center=0.1), [scores])
    compiles(lambda impl, s: loss(impl, s, better, worse, total_weight=3.0), [scored(6)])
