"""SwiGLU: checks, dispatch, and the custom op of the kernels."""

from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.swiglu import reference


@custom_op("rmfast::swiglu")
def _swiglu(gate_up: Tensor) -> Tensor:
    from rmfast.kernels.swiglu import triton

    return triton.swiglu_fwd(gate_up)


@_swiglu.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@custom_op("rmfast::swiglu_backward")
def _swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    from rmfast.kernels.swiglu import triton

    return triton.swiglu_bwd(grad, gate_up)


@_swiglu_backward.register_fake
def _(grad: Tensor, gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _swiglu_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0])


def _swiglu_grad(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return _swiglu_backward(grad, ctx.saved_tensors[0])


_swiglu.register_autograd(_swiglu_grad, setup_context=_swiglu_setup)


def swiglu(gate_up: Tensor, *, impl: str = "auto") -> Tensor:
    """silu(gate) * up for `gate_up` [..., 2 f], gate first -> [..., f]. Differentiable.

    The kernels keep gate_up alone for the backward, and write its gradient as one tensor.
    Source: Shazeer, GLU Variants Improve Transformer, equation 6 without its linear layers.

    Args:
        gate_up: [..., 2 f], the fused product of both projections.
        impl: "auto", "triton" or "reference".

    Raises:
        ValueError: no floating-point tensor [..., 2 f].
    """
    fits = gate_up.dim() > 0 and gate_up.is_floating_point()
    check(
        fits, "swiglu", lambda: f"gate_up must be floating point [..., 2 f], got {gate_up.dtype} of {gate_up.dim()}-d"
    )
    check(gate_up.shape[-1] % 2 == 0, "swiglu", lambda: f"the last dimension must be even, got {gate_up.shape[-1]}")
    if use_triton("swiglu", impl, gate_up):
        return _swiglu(gate_up)
    return reference.swiglu(gate_up.to(maths_dtype(gate_up))).to(gate_up.dtype)
