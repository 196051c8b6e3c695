"""AdamW by torch's own fused kernel: one pass over memory, and clipping and skipping on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def refusal(device: torch.device, masters: Sequence[Tensor] = (), others: Sequence[Tensor] = ()) -> str | None:
    """Why the kernel cannot take such tensors, or None."""
    tensors = [*masters, *others]
    if any(t.dtype != tensors[0].dtype or t.device != device for t in tensors):
        return "it takes tensors of one dtype on one device"
    return None if all(t.is_contiguous() for t in tensors) else "it takes contiguous tensors"


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
    """One call for each weight decay. Gradients are divided by `grad_scale` in place."""
    step = step.float()  # the kernel reads it for each tensor and leaves it as it is
    for decay in sorted(set(weight_decay)):
        chosen = [i for i, d in enumerate(weight_decay) if d == decay]
        w, g, m, v = ([tensors[i] for i in chosen] for tensors in (weights, grads, exp_avg, exp_avg_sq))
        torch._fused_adamw_(
            w,
            g,
            m,
            v,
            [],
            [step] * len(chosen),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=grad_scale,
            found_inf=None if skip is None else skip.float(),
        )
