"""Sinkhorn's codes equal SwAV's own algorithm in fp64, and do not overflow where that does."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.contrastive import sinkhorn
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IMPLS = ["reference", "triton"]


def call(epsilon: float = 0.3, iterations: int = 3) -> Callable[..., Tensor]:
    return lambda impl, scores: sinkhorn(scores, epsilon=epsilon, iterations=iterations, impl=impl)


def swav(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The listing of SwAV: clusters are rows here."""
    q = (scores.double() / epsilon).exp().T
    clusters, items = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / clusters
        q = q / q.sum(0, keepdim=True) / items
    return q.T / q.sum(0)[:, None]


@settings(max_examples=10, deadline=None)
@given(
    items=st.integers(1, 70),
    clusters=st.integers(1, 70),
    epsilon=st.sampled_from([0.05, 0.5, 5.0]),
    iterations=st.integers(0, 4),
    impl=st.sampled_from(IMPLS),
)
def test_against_swav(items: int, clusters: int, epsilon: float, iterations: int, impl: str) -> None:
    scores = torch.rand(items, clusters, device=DEVICE, dtype=torch.float64) * 2 - 1
    codes = call(epsilon, iterations)(impl, scores)
    torch.testing.assert_close(codes, swav(scores, epsilon, iterations), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(codes.sum(1), torch.ones_like(codes[:, 0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=3, deadline=None)
@given(
    items=st.sampled_from([0, 1, 16, 33, 70]),
    clusters=st.sampled_from([1, 32, 45, 100]),
    epsilon=st.sampled_from([0.05, 1.0]),
    iterations=st.sampled_from([1, 3]),
)
def test_values(dtype: torch.dtype, items: int, clusters: int, epsilon: float, iterations: int) -> None:
    scores = torch.rand(items, clusters, device=DEVICE).to(dtype)
    # Rounding a logit moves its code by as much, relatively.
    assert_exact(call(epsilon, iterations), [scores], scale=1 / epsilon)


@pytest.mark.parametrize("impl", IMPLS)
def test_many_iterations_share_the_clusters_equally(impl: str) -> None:
    codes = call(0.5, 12)(impl, torch.rand(24, 8, device=DEVICE, dtype=torch.float64))
    torch.testing.assert_close(codes.sum(0), torch.full_like(codes[0], 3.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_scores_beyond_the_range_of_exp(impl: str) -> None:
    scores = torch.randn(20, 40, device=DEVICE)
    shifts = 1000 * torch.randn(1, 40, device=DEVICE)
    truth = swav(scores, 0.25, 3)  # a cluster's shift is no information
    codes = call(0.25)(impl, (scores.double() + shifts.double()))
    torch.testing.assert_close(codes, truth, rtol=1e-9, atol=1e-12)
    narrow = call(0.05)(impl, 1e4 * scores)
    assert narrow.isfinite().all() and (narrow.sum(1) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("impl", IMPLS)
def test_codes_are_constants(impl: str) -> None:
    scores = torch.randn(4, 3, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    codes = call()(impl, scores)
    assert not codes.requires_grad and codes.dtype == torch.float32
    torch.testing.assert_close(codes.double(), swav(scores.detach(), 0.3, 3), rtol=1e-4, atol=1e-6)


def test_strided_scores() -> None:
    scores = torch.randn(80, 70, device=DEVICE)
    for view in (lambda x: x.T, lambda x: x[::3, 5:40], lambda x: x[:1].expand(9, 70)):
        assert_exact(lambda impl, x, view=view: call()(impl, view(x)), [scores], scale=3.0)


def test_nan_is_seen() -> None:
    scores = torch.randn(20, 6, device=DEVICE)
    scores[3, 2] = torch.nan
    for impl in IMPLS:
        assert call()(impl, scores).isnan().all()


def test_registration() -> None:
    scores = torch.randn(6, 5, device=DEVICE)
    registered(torch.ops.rmfast.sinkhorn.default, scores, 0.1, 2)
    compiles(call(), [scores])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(4)}, "scores must be"),
        ({"scores": torch.zeros(4, 0)}, "scores must be"),
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"iterations": -1}, "iterations must not be negative"),
        ({"impl": "full"}, "impl must be one of"),
    ],
)
def test_errors(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"sinkhorn: {message}"):
        sinkhorn(**{"scores": torch.zeros(2, 3), "epsilon": 0.1, "iterations": 3} | change)
