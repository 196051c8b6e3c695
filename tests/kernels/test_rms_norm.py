"""The RMSNorm kernels against fp64: values, every gradient, strides, empty inputs, registration."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rmfast.kernels import add_rms_norm, rms_norm
from rmfast.kernels.launch import recording, row_starts
from rmfast.kernels.rms_norm import triton as norm_triton
from tests.kernels.harness import DEVICE, assert_exact, compiles, equal, far_apart, registered, run, shared_storages

EPS = 1e-5
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def norm(impl: str, x: Tensor, weight: Tensor) -> Tensor:
    return rms_norm(x, weight, eps=EPS, impl=impl)


def add_norm(impl: str, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return add_rms_norm(x, residual, weight, eps=EPS, impl=impl)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()


def eighths(*shape: int, dtype: torch.dtype, scale: float) -> Tensor:
    """Normal values on so coarse a grid that the sum of two is exact in bf16, whichever way its store rounds."""
    return (((torch.randn(shape, device=DEVICE) * 8).round().clamp(-60, 60) / 8) * scale).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(0, 20), width=st.sampled_from([0, 1, 5, 33, 96]), scale=st.sampled_from([2**-13, 1.0, 2**13]))
def test_values_and_gradients(dtype: torch.dtype, rows: int, width: int, scale: float) -> None:
    x, residual = (eighths(rows, width, dtype=dtype, scale=scale) for _ in range(2))
    weight, grads = normal(width), [normal(rows, width, dtype=dtype).detach() for _ in range(2)]
    weight = weight.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    # The gradient of x is a difference of terms of the size of 1 / rms(x).
    for op, inputs in ((norm, [x, weight]), (add_norm, [x, residual, weight])):
        assert_exact(op, inputs, grads=grads, scale=1 / math.sqrt(scale**2 + EPS))


def test_the_norm_is_of_the_sum_as_returned() -> None:
    x, residual, weight = normal(9, 40, dtype=torch.bfloat16), normal(9, 40, dtype=torch.bfloat16), normal(40)
    normed, total = add_norm("triton", x, residual, weight)
    torch.testing.assert_close(total.float(), x.float() + residual.float(), rtol=2**-7, atol=0)
    torch.testing.assert_close(normed.float(), norm("reference", total.float(), weight), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("width", [5, 300])
def test_a_backward_of_many_tiles_a_program(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(norm_triton, "PARTIALS", 2)
    monkeypatch.setattr(norm_triton, "TILE", 16)
    x, residual, weight = normal(37, width), normal(37, width), normal(width)
    assert_exact(add_norm, [x, residual, weight], grads=[torch.randn(37, width, device=DEVICE) for _ in range(2)])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_spoils_no_other(bad: float) -> None:
    x, residual, weight = normal(6, 10), normal(6, 10), normal(10)
    grads = [torch.randn(6, 10, device=DEVICE) for _ in range(2)]
    good = run(partial(add_norm, "triton"), [x, residual, weight], grads)
    with torch.no_grad():
        x[2, 3] = bad
    assert_exact(add_norm, [x, residual, weight], grads=grads)
    damaged = run(partial(add_norm, "triton"), [x, residual, weight], grads)
    others = torch.arange(6, device=DEVICE) != 2
    for a, b in zip(good[:4], damaged[:4], strict=True):
        assert torch.equal(a[others], b[others])
    assert damaged[0][2].isnan().any() and damaged[4].isnan().any()


def test_strided_and_higher_dimensions() -> None:
    wide, weight = normal(5, 3, 40), normal(7)
    for view in (lambda t: t[:, :, 2:9], lambda t: t[..., ::5][..., :7], lambda t: t[:, 0, :7], lambda t: t[0, 0, :7]):
        shape = view(wide).shape
        assert_exact(
            lambda impl, w, g, view=view: norm(impl, view(w), g),
            [wide, weight],
            grads=[torch.randn(shape, device=DEVICE)],
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_within_wider_rows_stay_where_they_are(dtype: torch.dtype) -> None:
    wide, weight = normal(7, 5 * 6, dtype=dtype), normal(6)
    grads = [normal(7, 3, 6, dtype=dtype).detach()]
    weight = weight.detach().to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()

    def heads(impl: str, x: Tensor, w: Tensor) -> Tensor:
        return norm(impl, x.unflatten(1, (5, 6))[:, 1:4], w)

    assert_exact(heads, [wide, weight], grads=grads)
    view = wide.detach().unflatten(1, (5, 6))[:, 1:4]
    with recording((9, 0)) as started:
        _, _, rstd = norm_triton.rms_norm_fwd(view, None, weight, EPS)
        norm_triton.rms_norm_bwd(grads[0], None, view, weight, rstd)
    assert [one.arguments[i].data_ptr() for one, i in zip(started, (0, 2), strict=True)] == [view.data_ptr()] * 2


@pytest.mark.parametrize("heads", [1, 3])
def test_other_views_are_copied_only_where_strides_ask_for_it(heads: int) -> None:
    x = torch.randn(4, heads, 6, device=DEVICE)
    for view, copied in ((x, False), (x[:, :, :4], False), (x.transpose(0, 1), False), (x[:, :, ::2], True)):
        start, group, outer, inner = row_starts(view)
        rows = [i // group * outer + i % group * inner if group else i * outer for i in range(4 * heads)]
        flat = start.as_strided((4 * heads, view.shape[2]), (0, 1))  # rows by their starts
        got = torch.stack([start.as_strided(flat.shape[1:], (1,), start.storage_offset() + at) for at in rows])
        assert torch.equal(got, view.reshape(-1, view.shape[2]))
        assert (start.data_ptr() != view.data_ptr()) == copied


def test_where_the_sum_alone_is_used_its_gradient_is_both_terms() -> None:
    x, residual, weight = normal(3, 5), normal(3, 5), normal(5)
    grad = torch.randn(3, 5, device=DEVICE)
    got = torch.autograd.grad(add_norm("triton", x, residual, weight)[1], (x, residual, weight), grad)
    equal(got, (grad, grad, torch.zeros_like(weight)))


@pytest.mark.parametrize("width", [576, 2048, 4096])
def test_a_backward_keeps_enough_reads_in_flight(width: int) -> None:
    """Warps for each processor of an H100, of 16k tokens: each waits for its row's sum before it reads the next one."""
    x, weight = torch.empty(16384, width, dtype=torch.bfloat16, device="meta"), torch.empty(width, device="meta")
    with recording((9, 0)) as started:
        norm_triton.rms_norm_bwd(x, x, x, weight, torch.empty(16384, device="meta"))
    programs = len(started[0].arguments[6])
    assert programs * started[0].options["num_warps"] / 132 >= 32
    assert programs * width * 8 <= 0.1 * 4 * x.numel() * x.element_size()  # the shares of weight's gradient


def test_gradcheck() -> None:
    x, residual, weight = (normal(*shape, dtype=torch.float64) for shape in ((3, 5), (3, 5), (5,)))
    assert torch.autograd.gradcheck(lambda *a: add_norm("triton", *a), (x, residual, weight))


def test_registration() -> None:
    x, residual, weight = normal(6, 5), normal(6, 5), normal(5)
    registered(torch.ops.rmfast.rms_norm.default, x, residual, weight, EPS)
    registered(torch.ops.rmfast.rms_norm.default, x, None, weight, EPS)
    compiles(add_norm, [x, residual, weight])


def test_a_row_too_wide_for_a_program_is_the_references() -> None:
    x, weight = torch.ones(1, 65537, device=DEVICE), torch.ones(65537, device=DEVICE)
    assert rms_norm(x, weight, eps=EPS).shape == x.shape
    with pytest.raises(ValueError, match="rms_norm: impl='triton' is not possible: rows of 65537"):
        norm("triton", x, weight)


@pytest.mark.usefixtures("alone_on_the_gpu")
def test_rows_beyond_two_to_the_31_elements() -> None:
    x, residual, grad, grad_sum = (normal(3, 10, dtype=torch.bfloat16).detach() for _ in range(4))
    weight, rstd = normal(10).detach(), torch.rand(3, device=DEVICE)
    with shared_storages():
        for place in (lambda t: (far_apart(t[0]), t[1]), lambda t: (t[0], far_apart(t[1]))):
            equal(
                norm_triton.rms_norm_fwd(*place((x, residual)), weight, EPS),
                norm_triton.rms_norm_fwd(x, residual, weight, EPS),
            )
            got = norm_triton.rms_norm_bwd(*place((grad, grad_sum)), x, weight, rstd)
            equal(got, norm_triton.rms_norm_bwd(grad, grad_sum, x, weight, rstd))
        got = norm_triton.rms_norm_bwd(grad, grad_sum, far_apart(x), weight, rstd)
        equal(got, norm_triton.rms_norm_bwd(grad, grad_sum, x, weight, rstd))


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.ones(2, 3, dtype=torch.int64)], ids=["0-d", "int"])
def test_what_is_no_row_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="^rms_norm: x must be floating point"):
        rms_norm(x, torch.ones(x.shape[-1:]), eps=EPS)
    with pytest.raises(ValueError, match="^add_rms_norm: x must be floating point"):
        add_rms_norm(x, x, torch.ones(x.shape[-1:]), eps=EPS)
