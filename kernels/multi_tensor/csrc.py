"""The multi-tensor ops of the compiled library."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rmfast.kernels import compiled
from rmfast.kernels.multi_tensor import reference

_NARROW = (torch.float32, torch.bfloat16)


def refusal(device: torch.device, masters: Sequence[Tensor] = (), others: Sequence[Tensor] = ()) -> str | None:
    """Why the library cannot take such tensors, or None."""
    if any(t.dtype != torch.float32 for t in masters) or any(t.dtype not in _NARROW for t in others):
        return "it takes masters in fp32, and the rest in fp32 or bf16"
    if any(t.device != device for t in (*masters, *others)) or device.type not in ("cpu", "cuda"):
        return "it takes tensors on one device, a CPU or a GPU"
    if not all(t.is_contiguous() for t in (*masters, *others)):
        return "it takes contiguous tensors"
    if (reason := compiled.missing()) is not None:
        return reason
    return "the compiled ops were built without CUDA" if device.type == "cuda" and not _has_cuda() else None


def _has_cuda() -> bool:
    return bool(torch.ops.rmfast_C.has_cuda())


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


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
    """One pass over memory."""
    device, scalars = weights[0].device, reference.adamw_scalars(step, lr, beta1, beta2)
    with _on(device):
        torch.ops.rmfast_C.adamw_(
            weights, grads, exp_avg, exp_avg_sq, weight_decay, scalars, grad_scale, skip, beta1, beta2, eps,
            _stream(device),
        )  # fmt: skip


def gradient_norm(grads: list[Tensor]) -> Tensor:
    """Sums of chunks, then of those, in fixed order."""
    device = grads[0].device
    partials = torch.empty(torch.ops.rmfast_C.norm_partials(grads), dtype=torch.float64, device=device)
    out = torch.empty((), dtype=torch.float32, device=device)
    with _on(device):
        torch.ops.rmfast_C.gradient_norm_(grads, partials, out, _stream(device))
    return out


def perturb_(targets: list[Tensor], masters: list[Tensor], grads: list[Tensor], eta: Tensor | None) -> None:
    """Without gradients the targets become the masters."""
    with _on(masters[0].device):
        torch.ops.rmfast_C.perturb_(targets, masters, grads, eta, _stream(masters[0].device))


def restore_(targets: list[Tensor], masters: list[Tensor]) -> None:
    perturb_(targets, masters, [], None)
