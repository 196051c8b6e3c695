"""Reward heads equal their dense fp64 selves, and their kernels the reference: values, every gradient, limits."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from rmfast.kernels import score_head
from rmfast.kernels.score_head import triton as score_triton
from tests.kernels.harness import (
    DEVICE,
    assert_exact,
    compiles,
    equal,
    far_apart,
    registered,
    run,
    shared_storages,
    without_autocast_too,
)

EPS = 1e-5
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def op(impl: str, hidden: Tensor, norm: Tensor, head: Tensor) -> Tensor:
    return score_head(hidden, norm, head, eps=EPS, impl=impl)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def dense_scores(hidden: Tensor, norm: Tensor, head: Tensor, eps: float) -> Tensor:
    rows = [h / math.sqrt(sum(x * x for x in h.tolist()) / len(h) + eps) * norm for h in hidden]
    return torch.stack([head @ row for row in rows])


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_score_head(impl: str, heads: int, eps: float) -> None:
    hidden, norm, head = (torch.randn(*s, device=DEVICE).double() for s in ((5, 8), (8,), (heads, 8)))
    ours = score_head(hidden, norm, head, eps=eps, impl=impl)
    assert ours.shape == (5, heads)
    torch.testing.assert_close(ours, dense_scores(hidden, norm, head, eps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_gradients_are_those_of_norm_and_linear(impl: str) -> None:
    hidden, head = normal(6, 12, dtype=torch.float64), normal(2, 12, dtype=torch.float64)
    norm, grad = LlamaRMSNorm(12, eps=EPS).double().to(DEVICE), torch.randn(6, 2, device=DEVICE).double()
    with torch.no_grad():
        norm.weight.normal_()
    inputs = (hidden, norm.weight, head)
    want = torch.autograd.grad(norm(hidden) @ head.T, inputs, grad)
    # Their norm works in fp32.
    for a, b in zip(torch.autograd.grad(op(impl, *inputs), inputs, grad), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_gradcheck(impl: str) -> None:
    inputs = [normal(*shape, dtype=torch.float64) for shape in [(3, 4), (4,), (2, 4)]]
    assert torch.autograd.gradcheck(lambda *x: score_head(*x, eps=1e-3, impl=impl), inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(0, 20), width=st.sampled_from([1, 5, 33, 96, 300]), heads=st.sampled_from([1, 2, 3, 7, 16]),
    scale=st.sampled_from([2**-13, 1.0, 2**13]),
)  # fmt: skip
def test_values_and_gradients(dtype: torch.dtype, rows: int, width: int, heads: int, scale: float) -> None:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    hidden = (normal(rows, width) * scale).detach().to(dtype).requires_grad_()
    norm, head = normal(width, dtype=weights), normal(heads, width, dtype=dtype)
    # The gradient of hidden is a difference of terms of the size of 1 / rms(hidden); scores are sums over the width.
    size = max(1.0, 1 / math.sqrt(scale**2 + EPS)) * math.sqrt(heads)
    assert_exact(op, [hidden, norm, head], grads=[normal(rows, heads).detach()], scale=size)


@pytest.mark.parametrize("heads", [1, 5])
def test_a_backward_of_many_tiles_a_program(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    monkeypatch.setattr(score_triton, "PROGRAMS", 9)
    monkeypatch.setattr(score_triton, "TILE", 512)
    assert_exact(op, [normal(37, 700), normal(700), normal(heads, 700)], grads=[normal(37, heads).detach()], scale=4.0)


def test_scores_of_bf16_are_fp32() -> None:
    """Also where neighbours in bf16 are far apart: ties are broken."""
    hidden, norm, head = normal(32, 16, dtype=torch.bfloat16), torch.rand(16).bfloat16(), torch.randn(1, 16).bfloat16()
    hidden, norm, head = hidden.detach().to(DEVICE), norm.to(DEVICE), head.to(DEVICE)
    for impl in ("reference", "triton"):
        ours = op(impl, hidden, norm, head)
        assert ours.dtype == torch.float32
        want = dense_scores(hidden.double(), norm.double(), head.double(), EPS).float()
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)


def test_strided() -> None:
    wide = normal(9, 40)
    norm, head = normal(14), normal(28, 3)
    for view in (lambda t: t[:, 3:10], lambda t: t[1::3, ::6][:, :7], lambda t: t.T[:5, :7], lambda t: t[:1, :7]):
        rows = len(view(wide))
        assert_exact(
            lambda impl, w, n, h, view=view: op(impl, view(w), n[::2], h[::4].T),
            [wide, norm, head],
            grads=[torch.randn(3, rows, device=DEVICE).T],
            scale=4.0,
        )
    expanded = lambda impl, *x: op(impl, *x).sum()  # noqa: E731
    assert_exact(expanded, [normal(5, 7), normal(7), normal(2, 7)], grads=[torch.ones((), device=DEVICE)], scale=4.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_spoils_no_other(bad: float) -> None:
    inputs, grad = [normal(6, 10), normal(10), normal(2, 10)], torch.randn(6, 2, device=DEVICE)
    good = run(partial(op, "triton"), inputs, [grad])
    with torch.no_grad():
        inputs[0][2, 3] = bad
    assert_exact(op, inputs, grads=[grad], scale=4.0)
    damaged = run(partial(op, "triton"), inputs, [grad])
    others = torch.arange(6, device=DEVICE) != 2
    for a, b in zip(good[:2], damaged[:2], strict=True):
        assert torch.equal(a[others], b[others])
    assert damaged[0][2].isnan().any() and damaged[3].isnan().any()


def test_the_gradient_of_hidden_is_orthogonal_to_it() -> None:
    """Scores do not change with the length of a row, but for eps."""
    hidden, norm, head = normal(5, 8, dtype=torch.float64), normal(8), normal(3, 8)
    out = score_head(hidden, norm, head, eps=0.0, impl="triton")
    (grad,) = torch.autograd.grad(out, hidden, torch.randn_like(out))
    assert (grad * hidden).sum(1).abs().max() < 1e-12 < grad.abs().max()


def test_registration() -> None:
    inputs = [normal(6, 5), normal(5), normal(2, 5)]
    registered(torch.ops.rmfast.score_head.default, *inputs, EPS)
    compiles(op, inputs)


@pytest.mark.parametrize(
    ("heads", "width", "message"),
    [(17, 4, "17 heads, not 1 to 16"), (0, 4, "0 heads"), (1, 65537, "rows of 65537"), (1, 0, "rows of 0")],
)
def test_what_the_kernels_cannot_take_is_the_references(heads: int, width: int, message: str) -> None:
    hidden, norm, head = (torch.ones(*s, device=DEVICE) for s in ((2, width), (width,), (heads, width)))
    assert score_head(hidden, norm, head, eps=EPS).shape == (2, heads)
    with pytest.raises(ValueError, match=f"score_head: impl='triton' is not possible: {message}"):
        op("triton", hidden, norm, head)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4,), (4,), (1, 4)), "hidden must be"),
        (((2, 4), (1,), (1, 4)), "norm_weight must be"),
        (((2, 4), (4,), (1, 3)), "head_weight must be"),
        (((2, 4), (4,), (4,)), "head_weight must be"),
    ],
)
def test_score_head_errors(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"score_head: {message}"):
        score_head(*(torch.zeros(shape) for shape in shapes), eps=EPS)


@pytest.mark.usefixtures("alone_on_the_gpu")
def test_rows_beyond_two_to_the_31_elements() -> None:
    hidden, norm, head = (normal(*s, dtype=torch.bfloat16).detach() for s in ((3, 10), (10,), (2, 10)))
    with shared_storages():
        scores, rstd = score_triton.score_head_fwd(hidden, norm, head, EPS)
        equal(score_triton.score_head_fwd(far_apart(hidden), norm, head, EPS), (scores, rstd))
        want = score_triton.score_head_bwd(scores, scores, hidden, norm, head, rstd)
        equal(score_triton.score_head_bwd(scores, scores, far_apart(hidden), norm, head, rstd), want)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_autocast_changes_nothing(impl: str) -> None:
    without_autocast_too(partial(op, impl), [normal(5, 40), normal(40), normal(3, 40)], backward=impl == "triton")
