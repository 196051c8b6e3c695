"""The clipped losses of PPO: checks, dispatch, and the custom op of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.clipped_losses import reference
from rmfast.kernels.common import check, maths_dtype, to_device, use_triton
from rmfast.kernels.dispatch import custom_op


@custom_op("rmfast::clipped_loss")
def _clipped_loss(
    policy: bool,
    x: Tensor,
    old: Tensor,
    goal: Tensor,
    mask: Tensor,
    clip: float | None,
    clip_high: float | None,
    total: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.clipped_losses import triton

    return triton.clipped_loss_fwd(policy, x, old, goal, mask, clip, clip_high, total)


@_clipped_loss.register_fake
def _(
    policy: bool,
    x: Tensor,
    old: Tensor,
    goal: Tensor,
    mask: Tensor,
    clip: float | None,
    clip_high: float | None,
    total: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = maths_dtype(x, old, goal)
    number = x.new_empty((), dtype=dtype)
    return number, x.new_empty(x.shape, dtype=dtype), torch.empty_like(number)


# An op that takes x and has no derivative, so that a second one is refused and not silently 0.
@custom_op("rmfast::clipped_loss_backward")
def _clipped_loss_backward(grad: Tensor, unit: Tensor, inverse: Tensor, x: Tensor) -> Tensor:
    return (unit * (grad * inverse)).to(x.dtype)


@_clipped_loss_backward.register_fake
def _(grad: Tensor, unit: Tensor, inverse: Tensor, x: Tensor) -> Tensor:
    return unit.new_empty(unit.shape, dtype=x.dtype)


def _clipped_loss_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, unit, inverse = output
    ctx.mark_non_differentiable(unit, inverse)
    ctx.save_for_backward(unit, inverse, inputs[1])


def _clipped_loss_grad(ctx, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
    return None, _clipped_loss_backward(grad, *ctx.saved_tensors), *[None] * 6


_clipped_loss.register_autograd(_clipped_loss_grad, setup_context=_clipped_loss_setup)


def _prepared(
    op: str, tensors: dict[str, Tensor], total: Tensor | float | None, **clips: float | None
) -> tuple[list[Tensor], Tensor | None]:
    """The tensors after x, detached, and `total` as a tensor on their device; raises where shapes differ."""
    x, *_ = tensors.values()
    for name, tensor in tensors.items():
        check(tensor.dim() == 1 and len(tensor) == len(x), op, f"{name} must be [T], got {tuple(tensor.shape)}")
    for name, clip in clips.items():
        check(clip is None or clip >= 0, op, f"{name} must not be negative, got {clip}")
    dtype = maths_dtype(*list(tensors.values())[:3])
    if isinstance(total, Tensor):
        check(total.dim() == 0, op, f"total must be a number, got {tuple(total.shape)}")
        total = to_device(total.detach(), x.device).to(dtype)
    elif total is not None:
        total = torch.full((), total, dtype=dtype, device=x.device)
    return [t.detach() for t in list(tensors.values())[1:]], total


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    total: Tensor | float | None = None,
    impl: str = "auto",
) -> Tensor:
    """PPO's clipped loss of the policy, mean over the mask. Differentiable in `log_prob`.

    Per token max(-A rho, -A clip(rho, 1 - clip, 1 + clip_high)) with rho = exp(log_prob - old_log_prob). Where both
    are equal each gives half of its gradient, as in `torch.maximum`.
    Source: Schulman et al. 2017, equation 7; Secrets of RLHF Part I; two ends: Yu et al. 2025 (DAPO), equation 10.

    Args:
        log_prob, old_log_prob, advantage: [T].
        mask: bool or float [T], weights of tokens; what stands where it is 0 does not matter, even nan.
        clip: how far the ratio may fall below 1. clip_high: how far it may rise above 1; default as far.
        total: what the weighted sum is divided by; default the mask's sum. Part of a batch passes the batch's sum.
        impl: "auto", "triton" or "reference". No second derivative through the kernels.

    Returns:
        A scalar; fp32 (fp64 where one of the first three is fp64). 0 where the mask is empty.

    Raises:
        ValueError: shapes that do not fit together, or a negative clip.
    """
    op, high = "policy_loss", clip if clip_high is None else clip_high
    check(clip is not None, op, "clip must be a number, got None")
    tensors = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantage": advantage, "mask": mask}
    (old, goal, weights), total = _prepared(op, tensors, total, clip=clip, clip_high=clip_high)
    if use_triton(op, impl, log_prob):
        return _clipped_loss(True, log_prob, old, goal, weights, clip, high, total)[0]
    dtype = maths_dtype(log_prob, old, goal)
    x, old, goal, weights = (t.to(dtype) for t in (log_prob, old, goal, weights))
    return reference.policy_loss(x, old, goal, weights, clip, high, total)


def value_loss(
    value: Tensor,
    old_value: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float | None,
    total: Tensor | float | None = None,
    impl: str = "auto",
) -> Tensor:
    """PPO's clipped loss of the critic, mean over the mask. Differentiable in `value`.

    Per token 0.5 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2). Where both are equal
    each gives half of its gradient, as in `torch.maximum`. Source: Secrets of RLHF Part I and its code.

    Args:
        value, old_value, returns: [T].
        mask: bool or float [T], weights of tokens; what stands where it is 0 does not matter, even nan.
        clip: how far a value may move from the old one; None for a plain squared error.
        total: what the weighted sum is divided by; default the mask's sum. Part of a batch passes the batch's sum.
        impl: "auto", "triton" or "reference". No second derivative through the kernels.

    Returns:
        A scalar; fp32 (fp64 where one of the first three is fp64). 0 where the mask is empty.

    Raises:
        ValueError: shapes that do not fit together, or a negative clip.
    """
    op = "value_loss"
    tensors = {"value": value, "old_value": old_value, "returns": returns, "mask": mask}
    (old, goal, weights), total = _prepared(op, tensors, total, clip=clip)
    if use_triton(op, impl, value):
        return _clipped_loss(False, value, old, goal, weights, clip, None, total)[0]
    dtype = maths_dtype(value, old, goal)
    return reference.value_loss(value.to(dtype), old.to(dtype), goal.to(dtype), weights.to(dtype), clip, total)
