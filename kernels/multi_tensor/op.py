"""The multi-tensor ops: checks and the choice of an implementation."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from rmfast.kernels.common import check
from rmfast.kernels.multi_tensor import extension, fused, reference

IMPLEMENTATIONS = ("auto", "extension", "fused", "reference")  # "fused", torch's own kernel, for adamw_ alone


def _use_extension(op: str, impl: str, masters: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    known = [name for name in IMPLEMENTATIONS if name != "fused" or op == "adamw_"]
    check(impl in known, op, f"impl must be one of {', '.join(known)}, got {impl!r}")
    if impl in ("fused", "reference") or (impl == "auto" and torch.compiler.is_compiling()):
        return False
    tensors = [*masters, *others]
    device = tensors[0].device
    if any(t.dtype != torch.float32 for t in masters) or any(t.dtype not in _NARROW for t in others):
        reason: str | None = "it takes masters in fp32, and the rest in fp32 or bf16"
    elif any(t.device != device for t in tensors) or device.type not in ("cpu", "cuda"):
        reason = "it takes tensors on one device, a CPU or a GPU"
    elif not all(t.is_contiguous() for t in tensors):
        reason = "it takes contiguous tensors"
    else:
        reason = extension.cuda_missing() if device.type == "cuda" else extension.missing()
    check(impl == "auto" or reason is None, op, f"impl='extension' is not possible: {reason}")
    return reason is None


_NARROW = (torch.float32, torch.bfloat16)


def _use_fused(impl: str, masters: Sequence[Tensor], grads: Sequence[Tensor], copies: bool) -> bool:
    if impl == "reference" or (impl == "auto" and torch.compiler.is_compiling()):
        return False
    first = masters[0]
    reason = None
    if copies:
        reason = "it writes no copies"
    elif any(t.dtype != first.dtype or t.device != first.device for t in [*masters, *grads]):
        reason = "it takes tensors of one dtype on one device"
    elif not all(t.is_contiguous() for t in [*masters, *grads]):
        reason = "it takes contiguous tensors"
    check(impl == "auto" or reason is None, "adamw_", f"impl='fused' is not possible: {reason}")
    return reason is None


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _check_lists(op: str, first: Sequence[Tensor], **others: Sequence[Tensor]) -> None:
    for name, tensors in others.items():
        check(len(tensors) == len(first), op, f"{name} must be {len(first)} tensors, got {len(tensors)}")
        for i, (tensor, like) in enumerate(zip(tensors, first, strict=True)):
            check(tensor.shape == like.shape, op, f"{name}[{i}] must be {tuple(like.shape)}, got {tuple(tensor.shape)}")


def _scalar(op: str, name: str, value: Tensor | float, device: torch.device, dtype: torch.dtype) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=dtype, device=device)
    check(value.numel() == 1, op, f"{name} must be a number, got {tuple(value.shape)}")
    return value.detach().reshape(()).to(device, dtype)


@torch.no_grad()
def adamw_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    *,
    step: Tensor,
    lr: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Sequence[float] = 0.0,
    grad_scale: Tensor | None = None,
    skip: Tensor | None = None,
    copies: Sequence[Tensor] | None = None,
    impl: str = "auto",
) -> None:
    """A step of AdamW in place (Loshchilov and Hutter 2019, algorithm 2). No call waits for the device.

    The extension and torch's fused kernel pass over memory once. The reference gives the bits of
    torch.optim.AdamW(foreach=False, fused=False) on the CPU. So do the moments of the extension on a CPU with FMA; its
    weights differ by roundings, for MKL rounds a square root not always to nearest.

    Args:
        weights: masters, fp32. grads: of the same shapes, each fp32 or bf16. "fused" leaves them divided by
            `grad_scale`; the others do not change them.
        exp_avg, exp_avg_sq: moments, fp32.
        step: number of this step, a scalar on the device, read only: the caller has added one already (1 in the first
            step), and does not where it skips. Several calls may share it.
        lr: a number, or a scalar on the device.
        weight_decay: one for all tensors, or one for each.
        grad_scale: scalar on the device by which gradients are divided, as in clipping.
        skip: scalar on the device, bool or number; where it is not 0 nothing at all is changed, whatever grads hold.
        copies: compute weights, fp32 or bf16, which get the new weights in the same pass.
        impl: "auto" (the first that can), "extension", "fused" or "reference".

    Raises:
        ValueError: lists that do not fit together, or an implementation that cannot run.
    """
    op = "adamw_"
    _check_lists(op, weights, grads=grads, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq, copies=copies or weights)
    decays = [float(weight_decay)] * len(weights) if isinstance(weight_decay, int | float) else list(weight_decay)
    check(len(decays) == len(weights), op, f"weight_decay must be a number or {len(weights)} numbers")
    check(isinstance(step, Tensor) and step.numel() == 1, op, "step must be a scalar tensor")
    if isinstance(lr, Tensor):
        check(lr.numel() == 1, op, f"lr must be a number, got {tuple(lr.shape)}")
        lr = lr.detach().reshape(())
    if not weights:
        return
    device = weights[0].device
    step = step.detach().reshape(()).to(device)
    scale = None if grad_scale is None else _scalar(op, "grad_scale", grad_scale, device, torch.float32)
    skipped = None if skip is None else _scalar(op, "skip", skip, device, torch.bool)
    w, g, m, v, c = (list(tensors) for tensors in (weights, grads, exp_avg, exp_avg_sq, copies or []))
    compiled = _use_extension(op, impl, [*weights, *exp_avg, *exp_avg_sq], [*grads, *(copies or [])])
    if not compiled and _use_fused(impl, [*weights, *exp_avg, *exp_avg_sq], grads, bool(copies)):
        fused.adamw_(w, g, m, v, decays, step, lr, scale, skipped, *betas, eps)
        return
    scalars = reference.adamw_scalars(step, lr, *betas)
    if compiled:
        with _on(device):
            torch.ops.rmfast_C.adamw_(w, g, m, v, c, decays, scalars, scale, skipped, *betas, eps, _stream(device))
        return
    reference.adamw_(w, g, m, v, c, decays, scalars, scale, skipped, *betas, eps)


@torch.no_grad()
def gradient_norm(grads: Sequence[Tensor], *, impl: str = "auto") -> Tensor:
    """The Euclidean norm of all gradients together: an fp32 scalar on their device, 0 for none (then on the CPU).

    Sums are in fp64 and in fixed order: equal gradients give equal bits. Not finite where a gradient is not.
    """
    op = "gradient_norm"
    if not grads:
        return torch.zeros(())
    if _use_extension(op, impl, [], grads):
        device, tensors = grads[0].device, list(grads)
        partials = torch.empty(torch.ops.rmfast_C.norm_partials(tensors), dtype=torch.float64, device=device)
        out = torch.empty((), dtype=torch.float32, device=device)
        with _on(device):
            torch.ops.rmfast_C.gradient_norm_(tensors, partials, out, _stream(device))
        return out
    return reference.gradient_norm(list(grads))


@torch.no_grad()
def save(weights: Sequence[Tensor], out: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Copies of weights that are their own masters, to `perturb_` from and to `restore_`; into `out` if given."""
    if out is None:
        return [w.detach().clone(memory_format=torch.contiguous_format) for w in weights]
    restore_(out, weights, impl="reference")
    return list(out)


def _spans(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """The bytes from each tensor's first element to its last, by address."""
    return [
        (start, start + (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))) * t.element_size())
        for t in tensors
        if t.numel() and (start := t.data_ptr())
    ]


def _overlap(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether a tensor of `a` lies, even in part, where one of `b` does."""
    end_a = end_b = 0
    for start, end, first in sorted([(*span, True) for span in _spans(a)] + [(*span, False) for span in _spans(b)]):
        if start < (end_b if first else end_a):
            return True
        end_a, end_b = (max(end_a, end), end_b) if first else (end_a, max(end_b, end))
    return False


@torch.no_grad()
def perturb_(
    targets: Sequence[Tensor],
    masters: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    eta: Tensor | float,
    impl: str = "auto",
) -> None:
    """targets = masters + eta grads, rounded to the targets' dtype: MetaRM's theta' (Part II, algorithm 1).

    The masters stay as they are, so that `restore_` gives the targets back to the bit; subtracting eta grads would not.
    Weights without masters of their own: `saved = save(weights)`, then `perturb_(weights, saved, grads, eta=eta)`.

    Args:
        targets: compute weights, fp32 or bf16. masters: fp32, other memory than the targets.
        grads: fp32 or bf16. eta: a number, or a scalar on the device.

    Raises:
        ValueError: lists that do not fit together, targets that lie in masters' memory, or an implementation that
            cannot run.
    """
    op = "perturb_"
    _check_lists(op, masters, targets=targets, grads=grads)
    shared = any(t is m for t, m in zip(targets, masters, strict=True))
    if not torch.compiler.is_compiling():
        shared |= _overlap(targets, masters)
    check(not shared, op, "a target lies in a master's memory and could not be restored: save() the weights first")
    if not masters:
        return
    device = masters[0].device
    step = _scalar(op, "eta", eta, device, torch.float32)
    if _use_extension(op, impl, masters, [*targets, *grads]):
        with _on(device):
            torch.ops.rmfast_C.perturb_(list(targets), list(masters), list(grads), step, _stream(device))
        return
    reference.perturb_(list(targets), list(masters), list(grads), step)


@torch.no_grad()
def restore_(targets: Sequence[Tensor], masters: Sequence[Tensor], *, impl: str = "auto") -> None:
    """targets = masters, rounded to the targets' dtype: the weights before `perturb_`, to the bit.

    Raises:
        ValueError: lists that do not fit together, or an implementation that cannot run.
    """
    op = "restore_"
    _check_lists(op, masters, targets=targets)
    if not masters:
        return
    if _use_extension(op, impl, masters, targets):
        with _on(masters[0].device):
            torch.ops.rmfast_C.perturb_(list(targets), list(masters), [], None, _stream(masters[0].device))
        return
    reference.restore_(list(targets), list(masters))
