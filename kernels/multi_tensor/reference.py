"""The multi-tensor ops in plain torch, of _foreach ops."""

from collections.abc import Sequence

import torch
from torch import Tensor


def refusal(device: torch.device, masters: Sequence[Tensor] = (), others: Sequence[Tensor] = ()) -> None:
    """It takes all tensors."""


def adamw_scalars(step: Tensor, lr: float, beta1: float, beta2: float) -> Tensor:
    """fp64 [3] on the device of `step`: lr, -lr / (1 - beta1^step), sqrt(1 - beta2^step)."""
    step = step.double()
    rate = torch.full_like(step, lr)
    return torch.stack([rate, -rate / (1 - torch.pow(beta1, step)), (1 - torch.pow(beta2, step)).sqrt()])


def adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    weight_decay: list[float],
    step: Tensor,
    lr: float,
    grad_scale: Tensor | None,
    skip: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """The ops of torch.optim.AdamW(foreach=False, fused=False), with scalars on the device."""
    changed = [*weights, *exp_avg, *exp_avg_sq]
    before = [t.clone() for t in changed] if skip is not None else []
    dtype = weights[0].dtype
    rate, step_size, root = adamw_scalars(step, lr, beta1, beta2).unbind()
    grads = [g.to(dtype) for g in grads]
    if grad_scale is not None:
        grads = list(torch._foreach_div(grads, grad_scale.to(dtype)))
    for decay in sorted(set(weight_decay) - {0.0}):
        some = [w for w, d in zip(weights, weight_decay, strict=True) if d == decay]
        torch._foreach_mul_(some, (1 - rate * decay).to(dtype))
    torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sq, beta2)
    torch._foreach_addcmul_(exp_avg_sq, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sq)
    torch._foreach_div_(denominators, root.to(dtype))
    torch._foreach_add_(denominators, eps)
    updates = torch._foreach_mul(exp_avg, step_size.to(dtype))
    torch._foreach_div_(updates, denominators)
    torch._foreach_add_(weights, updates)
    if skip is not None:
        # Chosen, so that a NaN in the gradients leaves no trace.
        torch._foreach_copy_(changed, [torch.where(skip, b, t) for b, t in zip(before, changed, strict=True)])


def gradient_norm(grads: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(grads, 2, dtype=torch.float64)
    return torch.stack(list(norms)).square().sum().sqrt().float()


def perturb_(targets: list[Tensor], masters: list[Tensor], grads: list[Tensor], eta: Tensor) -> None:
    """Product and sum are rounded one after the other, on every device."""
    moves = torch._foreach_mul([g.to(m.dtype) for g, m in zip(grads, masters, strict=True)], eta.to(masters[0].dtype))
    torch._foreach_add_(moves, masters)
    torch._foreach_copy_(targets, moves)


def restore_(targets: list[Tensor], masters: list[Tensor]) -> None:
    torch._foreach_copy_(targets, masters)
