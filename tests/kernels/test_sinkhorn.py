"""Sinkhorn codes equal SwAV's own algorithm in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels.launch import recording
from rmfast.kernels.sinkhorn import sinkhorn, tiles
from rmfast.kernels.sinkhorn import triton as kernels
from tests.kernels.harness import DEVICE, assert_exact, compiles, registered

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
IMPLS = ["reference", "triton"]


def swav(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """`distributed_sinkhorn` of facebookresearch/swav, in one process. Q is K x B there."""
    q = torch.exp(scores / epsilon).t()
    prototypes, samples = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / samples
    return (q * samples).t()


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 31, 33, 300]),
    columns=st.sampled_from([1, 3, 32, 50, 70]),
    epsilon=st.sampled_from([0.03, 0.05, 1.0]),
    iterations=st.integers(1, 4),
)
def test_against_swav(impl: str, rows: int, columns: int, epsilon: float, iterations: int) -> None:
    scores = 2 * torch.rand(rows, columns, dtype=torch.float64, device=DEVICE) - 1
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations, impl=impl)
    torch.testing.assert_close(codes, swav(scores, epsilon, iterations), rtol=1e-11, atol=1e-15)


def test_a_sweep_over_columns_has_enough_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 20 warps for each processor of an H100, of SwAV's 3000 prototypes and 4096 vectors."""
    monkeypatch.setattr(tiles, "INTERPRETED", False)
    with recording((9, 0)) as started:
        kernels.column_potentials(torch.empty(1, 4096, 3000), torch.ones(()), 1)
    part, options = started[0].arguments[3], started[0].options
    programs = part.shape[1] * -(-3000 // options["COLUMNS"])
    assert programs * options["num_warps"] / 132 >= 20


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=10, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 17, 140, 290]),
    columns=st.sampled_from([1, 5, 64, 150]),
    epsilon=st.sampled_from([0.05, 0.7]),
    iterations=st.integers(0, 3),
    programs=st.sampled_from([1, 256]),
)
def test_values(dtype: torch.dtype, rows: int, columns: int, epsilon: float, iterations: int, programs: int) -> None:
    scores = (2 * torch.rand(rows, columns, device=DEVICE) - 1).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "PROGRAMS", programs)
        # A code errs by the exponent's error, a few roundings of 1 / epsilon.
        assert_exact(
            lambda impl, x: sinkhorn(x, epsilon=epsilon, iterations=iterations, impl=impl),
            [scores], slack=4e-6 / epsilon,
        )  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
def test_balance(impl: str) -> None:
    """Rows sum to 1 always, columns to B / K in the end, where the codes are a fixed point."""
    scores = torch.rand(48, 6, dtype=torch.float64, device=DEVICE)
    for iterations in (0, 1, 30):
        codes = sinkhorn(scores, epsilon=1.0, iterations=iterations, impl=impl)
        torch.testing.assert_close(codes.sum(1), torch.ones_like(codes[:, 0]))
    torch.testing.assert_close(codes.sum(0), torch.full_like(codes[0], 8.0))
    torch.testing.assert_close(sinkhorn(codes.log(), epsilon=1.0, iterations=1, impl=impl), codes)


@pytest.mark.parametrize("impl", IMPLS)
def test_invariances(impl: str) -> None:
    scores = torch.rand(40, 9, dtype=torch.float64, device=DEVICE)
    codes = sinkhorn(scores, epsilon=0.05, iterations=3, impl=impl)
    shifted = scores + torch.randn(9, dtype=torch.float64, device=DEVICE)  # the first step takes any such shift out
    torch.testing.assert_close(sinkhorn(shifted, epsilon=0.05, iterations=3, impl=impl), codes)
    torch.testing.assert_close(sinkhorn(scores * 3, epsilon=0.15, iterations=3, impl=impl), codes)
    rows, columns = torch.randperm(40, device=DEVICE), torch.randperm(9, device=DEVICE)
    permuted = sinkhorn(scores[rows][:, columns], epsilon=0.05, iterations=3, impl=impl)
    torch.testing.assert_close(permuted, codes[rows][:, columns])


@pytest.mark.parametrize("impl", IMPLS)
def test_edges(impl: str) -> None:
    assert sinkhorn(torch.empty(0, 4, device=DEVICE), epsilon=0.1, iterations=3, impl=impl).shape == (0, 4)
    one = torch.rand(1, 4, device=DEVICE)
    torch.testing.assert_close(sinkhorn(one, epsilon=0.1, iterations=1, impl=impl), torch.full_like(one, 0.25))
    torch.testing.assert_close(sinkhorn(one, epsilon=0.1, iterations=0, impl=impl), (one / 0.1).softmax(1))
    column = torch.rand(5, 1, device=DEVICE)
    torch.testing.assert_close(sinkhorn(column, epsilon=0.1, iterations=2, impl=impl), torch.ones_like(column))


@pytest.mark.parametrize("impl", IMPLS)
def test_large_scores(impl: str) -> None:
    """Where SwAV's exp overflows: codes are finite, sum to 1, and do not change with a common offset."""
    scores = torch.randn(30, 7, device=DEVICE)
    for offset in (0.0, 1e4, -1e4):
        far = scores * 1e4 + offset
        codes = sinkhorn(far, epsilon=0.05, iterations=3, impl=impl)
        assert codes.isfinite().all() and codes.dtype == torch.float32
        torch.testing.assert_close(codes.sum(1), torch.ones_like(codes[:, 0]))
    integers = torch.randint(-5, 5, (30, 7), device=DEVICE).float()
    near = sinkhorn(integers, epsilon=0.5, iterations=3, impl=impl)
    torch.testing.assert_close(
        sinkhorn(integers + 2**14, epsilon=0.5, iterations=3, impl=impl), near, rtol=0, atol=0.02
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_no_gradient_and_strides(impl: str) -> None:
    wide = torch.rand(20, 3, 9, device=DEVICE, requires_grad=True)
    for scores in (wide[:, 1, 2:8], wide[:, 0].T, wide[::2, :, 4], wide[:1, 0].expand(5, 9)):
        codes = sinkhorn(scores, epsilon=0.1, iterations=2, impl=impl)
        assert not codes.requires_grad and codes.is_contiguous()
        torch.testing.assert_close(codes, sinkhorn(scores.contiguous(), epsilon=0.1, iterations=2, impl=impl))


def test_nan_is_not_hidden() -> None:
    scores = torch.rand(40, 5, device=DEVICE)
    scores[33, 2] = torch.nan
    for impl in IMPLS:
        assert sinkhorn(scores, epsilon=0.1, iterations=1, impl=impl).isnan().any(1).all()


def test_registration() -> None:
    registered(torch.ops.rmfast.sinkhorn.default, torch.rand(6, 5, device=DEVICE), 0.1, 2)
    torch._dynamo.reset()  # what it has compiled for other tests counts against its limit
    compiles(lambda impl, x: sinkhorn(x, epsilon=0.1, iterations=2, impl=impl), [torch.rand(6, 5, device=DEVICE)])


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
    arguments = {"scores": torch.zeros(2, 4), "epsilon": 0.1, "iterations": 1} | change
    with pytest.raises(ValueError, match=f"sinkhorn: {message}"):
        sinkhorn(**arguments)
