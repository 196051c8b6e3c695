"""Log-probability and entropy of a linear layer's softmax: checks, dispatch, and the custom op of both ways."""

from typing import Any

import torch
from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton, without_autocast
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.linear_log_prob import reference


def _maths(kernels: bool) -> Any:
    if not kernels:
        return reference
    from rmfast.kernels.linear_log_prob import triton

    return triton


def _cap(softcap: float | None) -> tuple[float, ...]:
    """The argument that the reference takes and the kernels have not."""
    return () if softcap is None else (softcap,)


@custom_op("rmfast::linear_log_prob")
@without_autocast
def _linear_log_prob(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, softcap: float | None, kernels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _maths(kernels).linear_log_prob_fwd(hidden, weight, target, temperature, *_cap(softcap))


@_linear_log_prob.register_fake
def _(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, softcap: float | None, kernels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    log_prob, entropy, log_z = (hidden.new_empty(len(hidden), dtype=maths_dtype(hidden)) for _ in range(3))
    return log_prob, entropy, log_z


@custom_op("rmfast::linear_log_prob_backward")
@without_autocast
def _linear_log_prob_backward(
    grad_log_prob: Tensor,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    log_z: Tensor,
    entropy: Tensor,
    temperature: float,
    softcap: float | None,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    return _maths(kernels).linear_log_prob_bwd(
        grad_log_prob, grad_entropy, hidden, weight, target, log_z, entropy, temperature, *_cap(softcap)
    )


@_linear_log_prob_backward.register_fake
def _(
    grad_log_prob: Tensor,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    log_z: Tensor,
    entropy: Tensor,
    temperature: float,
    softcap: float | None,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, weight, target, *ctx.options = inputs
    _, entropy, log_z = output
    ctx.mark_non_differentiable(log_z)
    ctx.save_for_backward(hidden, weight, target, log_z, entropy)


def _grad(ctx, grad_log_prob: Tensor | None, grad_entropy: Tensor | None, _: None):  # type: ignore[no-untyped-def]
    if grad_log_prob is None:
        assert grad_entropy is not None
        grad_log_prob = torch.zeros_like(grad_entropy)
    grads = _linear_log_prob_backward(grad_log_prob, grad_entropy, *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None, None


_linear_log_prob.register_autograd(_grad, setup_context=_setup)


@without_autocast
def linear_log_prob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Log-probability of `target` and entropy, under softmax(hidden weight^T / temperature). Differentiable.

    The logits exist a chunk of rows at a time, in hidden's dtype; only two numbers a row are kept for the gradients.

    Args:
        hidden: [N, d].
        weight: [V, d], hidden's dtype.
        target: int [N], in 0..V-1. One outside is an index error in the reference and NaN in the kernels.
        temperature: > 0.
        softcap: logits become softcap tanh(logits / softcap) before the temperature; not in the kernels.
        impl: "auto", "triton" or "reference". No second derivative in either.

    Returns:
        Log-probability [N] and entropy [N], in nats, fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a temperature that is not positive.
    """
    op = "linear_log_prob"
    check(hidden.dim() == 2 and weight.dim() == 2, op, "hidden must be [N, d] and weight [V, d]")
    check(len(weight) > 0, op, "weight needs at least one row")
    check(hidden.shape[1] == weight.shape[1], op, "hidden and weight differ in width")
    check(hidden.dtype == weight.dtype, op, f"dtypes differ: {hidden.dtype} and {weight.dtype}")
    check(target.shape == hidden.shape[:1], op, "target must be [N], one for each row of hidden")
    check(not target.is_floating_point(), op, f"target must be integers, got {target.dtype}")
    check(temperature > 0, op, "temperature must be positive")
    check(softcap is None or softcap > 0, op, lambda: f"softcap must be positive, got {softcap}")
    kernels = use_triton(op, impl, hidden, refusal=None if softcap is None else "a soft cap on the logits")
    log_prob, entropy, _ = _linear_log_prob(hidden, weight, target.long(), temperature, softcap, kernels)
    return log_prob, entropy
