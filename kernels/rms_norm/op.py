"""RMSNorm, alone and after a residual sum: checks, dispatch, and the custom op of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.rms_norm import reference

# A row lives in one program's registers. Above, the backward spills; above 4096 already at widths that are no multiple
# of 16.
MAX_WIDTH = 8192


@custom_op("rmfast::rms_norm")
def _rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.rms_norm import triton

    return triton.rms_norm_fwd(x, residual, weight, eps)


@_rms_norm.register_fake
def _(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    total = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    return x.new_empty(x.shape), total, x.new_empty(x.shape[:-1].numel(), dtype=maths_dtype(x))


@custom_op("rmfast::rms_norm_backward")
def _rms_norm_backward(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.rms_norm import triton

    return triton.rms_norm_bwd(grad, grad_sum, x, weight, rstd)


@_rms_norm_backward.register_fake
def _(grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _rms_norm_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, residual, weight, _ = inputs
    _, total, rstd = output
    ctx.added = residual is not None
    ctx.mark_non_differentiable(*(() if ctx.added else (total,)), rstd)
    ctx.save_for_backward(total if ctx.added else x, weight, rstd)


def _rms_norm_grad(ctx, grad: Tensor | None, grad_sum: Tensor | None, _: None):  # type: ignore[no-untyped-def]
    x, weight, rstd = ctx.saved_tensors
    if grad is None:  # the sum alone was used
        return grad_sum, grad_sum, torch.zeros_like(weight), None
    grad_x, grad_weight = _rms_norm_backward(grad, grad_sum, x, weight, rstd)
    return grad_x, grad_x if ctx.added else None, grad_weight, None


_rms_norm.register_autograd(_rms_norm_grad, setup_context=_rms_norm_setup)


def _too_wide(x: Tensor) -> str | None:
    return f"rows of {x.shape[-1]} are wider than {MAX_WIDTH}" if x.shape[-1] > MAX_WIDTH else None


def _check(op: str, x: Tensor, weight: Tensor) -> None:
    check(
        x.dim() > 0 and x.is_floating_point(),
        op,
        lambda: f"x must be floating point [..., d], got {x.dtype} of {x.dim()}-d",
    )
    check(weight.shape == x.shape[-1:], op, lambda: f"weight must be [{x.shape[-1]}], got {tuple(weight.shape)}")


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, impl: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. Differentiable.

    Args:
        x: [..., d]. weight: [d]. impl: "auto", "triton" or "reference".

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: x is no floating-point tensor [..., d], or weight is not [d].
    """
    _check("rms_norm", x, weight)
    if use_triton("rms_norm", impl, x, refusal=_too_wide(x)):
        return _rms_norm(x, None, weight, eps)[0]
    dtype = maths_dtype(x)
    return reference.rms_norm(x.to(dtype), weight.to(dtype), eps).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The sum x + residual and its RMSNorm. Differentiable.

    Args:
        x, residual: [..., d]. weight: [d]. impl: "auto", "triton" or "reference".

    Returns:
        (normed, sum), both of x's shape and dtype; the norm is taken of the sum as it is returned.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    check(
        x.shape == residual.shape, "add_rms_norm", lambda: f"shapes differ: {tuple(x.shape)}, {tuple(residual.shape)}"
    )
    check(x.dtype == residual.dtype, "add_rms_norm", lambda: f"dtypes differ: {x.dtype}, {residual.dtype}")
    _check("add_rms_norm", x, weight)
    if use_triton("add_rms_norm", impl, x, refusal=_too_wide(x)):
        normed, total, _ = _rms_norm(x, residual, weight, eps)
        return normed, total
    total = x + residual
    return rms_norm(total, weight, eps=eps, impl="reference"), total
