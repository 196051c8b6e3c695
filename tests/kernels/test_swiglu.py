"""The SwiGLU kernels against fp64: values, the gradient, extreme gates, strides, empty inputs, registration."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import swiglu
from rmfast.kernels.swiglu import triton as swiglu_triton
from tests.kernels.harness import DEVICE, assert_exact, compiles, equal, far_apart, registered, run, shared_storages

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def op(impl: str, gate_up: Tensor) -> Tensor:
    return swiglu(gate_up, impl=impl)


def by_hand(gate_up: Tensor) -> Tensor:
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half], gate_up[..., half:]
    return gate / (1 + torch.exp(-gate)) * up


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(leading=st.lists(st.integers(0, 6), max_size=3), width=st.sampled_from([0, 1, 3, 8, 33, 100, 1030]))
def test_values_and_gradient(dtype: torch.dtype, leading: list[int], width: int) -> None:
    gate_up = (4 * normal(*leading, 2 * width)).to(dtype).requires_grad_()
    assert_exact(op, [gate_up], grads=[normal(*leading, width)], truth=by_hand)


def test_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up = normal(3, 2 * 2500).requires_grad_()
    assert_exact(op, [gate_up], grads=[normal(3, 2500)], truth=by_hand)
    monkeypatch.setattr(swiglu_triton, "TILE", 64)
    assert_exact(op, [normal(21, 2 * 20).requires_grad_()], grads=[normal(21, 20)], truth=by_hand)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_gates(dtype: torch.dtype) -> None:
    gate = torch.tensor([-1e30, -1e4, -104.0, -89.0, -88.0, -0.0, 17.0, 90.0, 1e4, 1e30], device=DEVICE)
    gate_up = torch.cat((gate, torch.full_like(gate, 1.5))).to(dtype).requires_grad_()
    (value, grad) = run(partial(op, "triton"), [gate_up], [torch.ones(10, device=DEVICE)])
    half = gate_up.detach()[:10].clamp(min=0)  # what silu is, this far out
    far = half.abs() > 16
    tolerance = 2**-7 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(value[far], half[far] * 1.5, rtol=tolerance, atol=0)
    torch.testing.assert_close(grad[10:][far], half[far], rtol=tolerance, atol=0)
    torch.testing.assert_close(grad[:10][far], torch.full_like(half[far], 1.5), rtol=tolerance, atol=1e-5)
    assert (value[:5].abs() < 1e-35).all() and (grad[:5].abs() < 1e-34).all() and grad.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_element_spoils_no_other(bad: float) -> None:
    gate_up = normal(4, 14)
    gate_up[1, 2] = bad
    assert_exact(op, [gate_up.requires_grad_()], grads=[normal(4, 7)])


def test_strided() -> None:
    wide = normal(6, 4, 50).requires_grad_()
    for view in (lambda t: t[..., 3:21], lambda t: t[:, 1, :18], lambda t: t[:, :, ::5], lambda t: t.transpose(0, 2)):
        shape = (*view(wide).shape[:-1], view(wide).shape[-1] // 2)
        assert_exact(lambda impl, w, view=view: op(impl, view(w)), [wide], grads=[normal(*shape)])
        # A gradient that is one number, expanded.
        assert_exact(lambda impl, w, view=view: op(impl, view(w)).sum(), [wide], grads=[torch.ones((), device=DEVICE)])


def test_gradcheck() -> None:
    gate_up = normal(3, 10, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(partial(op, "triton"), gate_up)


def test_registration() -> None:
    gate_up = normal(5, 2, 6).requires_grad_()
    registered(torch.ops.rmfast.swiglu.default, gate_up)
    compiles(op, [gate_up])


def test_errors() -> None:
    for impl in ("triton", "reference"):
        with pytest.raises(ValueError, match="swiglu: the last dimension must be even, got 3"):
            swiglu(torch.zeros(2, 3), impl=impl)
    for bad in (torch.tensor(1.0), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="^swiglu: gate_up must be floating point"):
            swiglu(bad)


@pytest.mark.usefixtures("alone_on_the_gpu")
def test_rows_beyond_two_to_the_31_elements() -> None:
    gate_up, grad = normal(3, 10, dtype=torch.bfloat16), normal(3, 5, dtype=torch.bfloat16)
    with shared_storages():
        equal([swiglu_triton.swiglu_fwd(far_apart(gate_up))], [swiglu_triton.swiglu_fwd(gate_up)])
        want = swiglu_triton.swiglu_bwd(grad, gate_up)
        equal([swiglu_triton.swiglu_bwd(far_apart(grad), gate_up)], [want])
        equal([swiglu_triton.swiglu_bwd(grad, far_apart(gate_up))], [want])
