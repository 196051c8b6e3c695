"""MetaRM's difference loss: the reference against pairs written out, the kernels against the reference in fp64."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.difference_loss import difference_loss, reference
from tests.kernels.harness import DEVICE, assert_exact, compiles, poisoned, registered, run

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
ONE = [torch.ones((), device=DEVICE)]


def loss(impl: str, scores: Tensor, group: Tensor, normaliser: str = "k2") -> Tensor:
    return difference_loss(scores, group, normaliser=normaliser, impl=impl)


def scored(count: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(count, device=DEVICE) * scale).to(dtype).requires_grad_()


def by_hand(scores: list[float], group: list[int], normaliser: str) -> tuple[float, list[float]]:
    """J and its gradient, pair by pair."""
    total, grad, numbers = 0.0, [0.0] * len(scores), sorted(set(group))
    for g in numbers:
        members = [i for i, other in enumerate(group) if other == g]
        k = len(members)
        norm = 2 / k**2 if normaliser == "k2" else 2 / (k * (k - 1)) if k > 1 else 0.0
        for a, i in enumerate(members):
            for j in members[a + 1 :]:
                p = 1 / (1 + math.exp(-abs(scores[i] - scores[j])))
                total += norm * p / len(numbers)
                slope = norm * p * (1 - p) / len(numbers) * ((scores[i] > scores[j]) - (scores[i] < scores[j]))
                grad[i] += slope
                grad[j] -= slope
    return total, grad


@pytest.mark.parametrize("normaliser", ["k2", "pairs"])
@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-3.0, 0.0, 0.5, 0.75, 4.0]), st.sampled_from([0, 1, 7, 900])), max_size=12),
    st.sampled_from([1, 20, 1 << 20]),
)
def test_reference_against_pairs(normaliser: str, samples: list[tuple[float, int]], chunk: int) -> None:
    scores, group = [s for s, _ in samples], [g for _, g in samples]
    leaf = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "PAIRS", chunk)
        got = loss("reference", leaf, torch.tensor(group, dtype=torch.int64), normaliser)
        (grad,) = torch.autograd.grad(got, leaf)
    value, slope = by_hand(scores, group, normaliser)
    assert got.item() == pytest.approx(value, abs=1e-14) and grad.tolist() == pytest.approx(slope, abs=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normaliser", ["k2", "pairs"])
@settings(max_examples=12, deadline=None)
@given(count=st.integers(0, 90), groups=st.sampled_from([1, 4, 60]), scale=st.sampled_from([0.01, 2.0, 1e4]))
def test_values_and_gradients(dtype: torch.dtype, normaliser: str, count: int, groups: int, scale: float) -> None:
    group = torch.randint(groups, (count,), device=DEVICE) * 1000003
    inputs = [scored(count, dtype, scale), group]
    # Slopes of 1e-123 are 0 in the reference, which takes 1 - sigmoid.
    op = partial(loss, normaliser=normaliser)
    assert_exact(op, inputs, grads=[torch.randn((), device=DEVICE)], scale=1e-3)


def test_alone_and_empty_are_zero() -> None:
    for normaliser in ("k2", "pairs"):
        for impl in ("triton", "reference"):
            for count in (0, 1, 20):
                with poisoned():
                    op = partial(loss, impl, normaliser=normaliser)
                    got, grad = run(op, [scored(count), torch.arange(count, device=DEVICE)], ONE)
                assert got == 0 and grad.shape == (count,) and not grad.any()


def test_equal_scores() -> None:
    group = torch.zeros(5, dtype=torch.int32, device=DEVICE)
    got, grad = run(partial(loss, "triton"), [torch.ones(5, device=DEVICE).requires_grad_(), group], ONE)
    assert got.item() == pytest.approx(0.4) and not grad.any()  # (k - 1) / (2 k), the least there is


def test_a_bad_score_spoils_its_own_group_alone() -> None:
    group = torch.arange(20, device=DEVICE) % 3
    for bad in (torch.nan, torch.inf, -torch.inf):
        scores = scored(20)
        good = run(partial(loss, "triton"), [scores, group], ONE)[1]
        with torch.no_grad():
            scores[4] = bad
        assert_exact(loss, [scores, group], grads=ONE)
        grad = run(partial(loss, "triton"), [scores, group], ONE)[1]
        assert torch.equal(good[group != 1], grad[group != 1])


def test_the_order_of_samples_and_the_names_of_groups_do_not_matter() -> None:
    scores, group = scored(30, torch.float64), torch.randint(5, (30,), device=DEVICE)
    order = torch.randperm(30, device=DEVICE)
    value, grad = run(partial(loss, "triton"), [scores, group], ONE)
    moved, moved_grad = run(partial(loss, "triton"), [scores.detach()[order].requires_grad_(), 9 - group[order]], ONE)
    torch.testing.assert_close(value, moved)
    torch.testing.assert_close(grad[order], moved_grad)
    assert grad.abs().max() > 1e-4 and grad.sum().abs() < 1e-14


def test_strided() -> None:
    scores, group = scored(60), torch.randint(3, (40,), device=DEVICE)
    assert_exact(lambda impl, s, g: loss(impl, s[::3], g[::2]), [scores, group], grads=ONE)


def test_gradcheck_and_no_second_derivative() -> None:
    scores, group = scored(12, torch.float64), torch.arange(12, device=DEVICE) % 3
    assert torch.autograd.gradcheck(lambda s: loss("triton", s, group, "pairs"), scores)
    (grad,) = torch.autograd.grad(loss("triton", scores, group), scores, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.sum(), scores)


def test_chunks_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """They compile, and have a second derivative."""
    monkeypatch.setattr(reference, "PAIRS", 20)
    scores, group = scored(9, torch.float64), torch.arange(9, device=DEVICE) % 2
    compiles(loss, [scores, group])
    assert torch.autograd.gradgradcheck(lambda s: loss("reference", s, group), scores)


def test_registration() -> None:
    scores, group = scored(9), torch.arange(9, device=DEVICE) % 4
    registered(torch.ops.rmfast.difference_loss.default, scores, group, True)
    compiles(loss, [scores, group])


def test_errors() -> None:
    scores, group = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    for change, message in [
        ({"scores": torch.zeros(1, 2)}, "scores must be"),
        ({"group": group[:1]}, "group must be"),
        ({"group": group.float()}, "integers"),
        ({"group": group.bool()}, "integers"),
        ({"normaliser": "k"}, "normaliser must be one of"),
    ]:
        with pytest.raises(ValueError, match=f"difference_loss: .*{message}"):
            difference_loss(**({"scores": scores, "group": group} | change))
