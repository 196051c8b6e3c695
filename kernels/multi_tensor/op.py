"""The multi-tensor ops: checks and the choice of an implementation."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rmfast.kernels.common import check
from rmfast.kernels.multi_tensor import apex, csrc, fused, reference

_RUN_BY: dict[str, dict[str, ModuleType]] = {
    "adamw_": {"csrc": csrc, "torch": fused, "apex": apex, "reference": reference},
    "gradient_norm": {"csrc": csrc, "torch": reference, "apex": apex, "reference": reference},
    "perturb_": {"csrc": csrc, "reference": reference},
    "restore_": {"csrc": csrc, "reference": reference},
}
_AUTO = ("csrc", "torch", "reference")  # the first that can


def refusal(
    backend: str, device: torch.device, masters: Sequence[Tensor] = (), others: Sequence[Tensor] = ()
) -> str | None:
    """Why an implementation of `adamw_` cannot run, here or on such tensors; None where it can.

    Args:
        backend: "csrc", "torch", "apex" or "reference". masters: weights and moments. others: gradients.
    """
    reason: str | None = _RUN_BY["adamw_"][backend].refusal(device, masters, others)
    return reason


def first_backend(device: torch.device, masters: Sequence[Tensor] = (), others: Sequence[Tensor] = ()) -> str:
    """The implementation of `adamw_` that "auto" takes."""
    return next(name for name in _AUTO if refusal(name, device, masters, others) is None)


def describe_backend(backend: str, device: torch.device) -> str:
    """An implementation of `adamw_` with its version, for a run's log; "auto" is what it stands for on a device."""
    backend = first_backend(device) if backend == "auto" else backend
    words = {"csrc": "csrc", "torch": f"torch {torch.__version__}", "reference": "plain torch"}
    return apex.describe() if backend == "apex" else words[backend]


def _module(op: str, impl: str, masters: Sequence[Tensor], others: Sequence[Tensor]) -> ModuleType:
    """What runs an op on such tensors."""
    known = _RUN_BY[op]
    check(impl in ("auto", *known), op, f"impl must be one of auto, {', '.join(known)}, got {impl!r}")
    if impl == "auto" and torch.compiler.is_compiling():
        return reference
    device = (*masters, *others)[0].device
    tried = [known[name] for name in _AUTO if name in known] if impl == "auto" else [known[impl]]
    for module in tried:
        reason = module.refusal(device, masters, others)
        if reason is None:
            return module
    raise ValueError(f"{op}: impl={impl!r} is not possible: {reason}")


def _check_lists(op: str, first: Sequence[Tensor], **others: Sequence[Tensor]) -> None:
    for name, tensors in others.items():
        check(len(tensors) == len(first), op, f"{name} must be {len(first)} tensors, got {len(tensors)}")
        for i, (tensor, like) in enumerate(zip(tensors, first, strict=True)):
            check(tensor.shape == like.shape, op, f"{name}[{i}] must be {tuple(like.shape)}, got {tuple(tensor.shape)}")


def _each(op: str, name: str, value: Any, count: int) -> Sequence[Any]:
    """One of every tensor, where one for all or one for each is given."""
    if isinstance(value, Tensor):
        value = value.detach()
        values = [value.reshape(())] * count if value.numel() == 1 else value.unbind()
    else:
        values = [value] * count if isinstance(value, int | float | None) else value
    check(len(values) == count, op, f"{name} must be a number or {count} numbers, got {len(values)}")
    return values


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
    lr: float | Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Sequence[float] = 0.0,
    grad_scale: Tensor | None = None,
    skip: Tensor | None = None,
    impl: str = "auto",
) -> None:
    """A step of AdamW in place (Loshchilov and Hutter 2019, algorithm 2). No call waits for the device.

    All but the reference pass over memory once. The reference gives the bits of
    torch.optim.AdamW(foreach=False, fused=False) on the CPU. So do the moments of csrc on a CPU with FMA; its weights
    differ by roundings, for MKL rounds a square root not always to nearest.

    Args:
        weights: masters, fp32. grads: of the same shapes, each fp32 or bf16. "torch" and "apex" leave them divided by
            `grad_scale`; the others do not change them.
        exp_avg, exp_avg_sq: moments, fp32.
        step: number of this step, on the device, read only: the caller has added one already (1 in the first step), and
            does not where it skips. Several calls may share it.
        lr, weight_decay: one for all tensors, or one for each.
        grad_scale: on the device, what gradients are divided by, as in clipping.
        skip: on the device, bool or number; where it is not 0 nothing at all is changed, whatever grads hold.
            Each of these three is a scalar, or [N] for N tensors that step each by itself.
        impl: "csrc" (the compiled library), "torch" (its fused kernel), "apex" (NVIDIA's, on a GPU), "reference", or
            "auto": csrc where it was built, else torch, else the reference.

    Raises:
        ValueError: lists that do not fit together, or an implementation that cannot run.
    """
    op = "adamw_"
    _check_lists(op, weights, grads=grads, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    check(isinstance(step, Tensor), op, "step must be a tensor")
    if not weights:
        return
    count, device = len(weights), weights[0].device
    lists = [list(tensors) for tensors in (weights, grads, exp_avg, exp_avg_sq)]
    decays = list(_each(op, "weight_decay", weight_decay, count))
    scalars = [
        _each(op, "step", step.to(device), count),
        _each(op, "lr", lr, count),
        _each(op, "grad_scale", None if grad_scale is None else grad_scale.to(device, torch.float32), count),
        _each(op, "skip", None if skip is None else skip.to(device, torch.bool), count),
    ]
    run = _module(op, impl, [*weights, *exp_avg, *exp_avg_sq], grads).adamw_
    if all(value is values[0] for values in scalars for value in values):
        run(*lists, decays, *(values[0] for values in scalars), *betas, eps)
        return
    for w, g, m, v, decay, *each in zip(*lists, decays, *scalars, strict=True):
        run([w], [g], [m], [v], [decay], *each, *betas, eps)


@torch.no_grad()
def gradient_norm(grads: Sequence[Tensor], *, impl: str = "auto") -> Tensor:
    """The Euclidean norm of all gradients together: an fp32 scalar on their device, 0 for none (then on the CPU).

    Sums are in fp64 (apex's in fp32), in fixed order: equal gradients give equal bits. Not finite where a gradient is
    not.

    Args:
        impl: as for `adamw_`; "torch" is the reference here.
    """
    if not grads:
        return torch.zeros(())
    norm: Tensor = _module("gradient_norm", impl, [], grads).gradient_norm(list(grads))
    return norm


def save(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies of weights that are their own masters, to `perturb_` from and to `restore_`."""
    return [w.detach().clone(memory_format=torch.contiguous_format) for w in weights]


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
        targets: compute weights, fp32 or bf16. masters: fp32, other memory than all targets'.
        grads: fp32 or bf16. eta: a number, or a scalar on the device.

    Raises:
        ValueError: lists that do not fit together, or an implementation that cannot run.
    """
    op = "perturb_"
    _check_lists(op, masters, targets=targets, grads=grads)
    if not masters:
        return
    step = _scalar(op, "eta", eta, masters[0].device, torch.float32)
    _module(op, impl, masters, [*targets, *grads]).perturb_(list(targets), list(masters), list(grads), step)


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
    _module(op, impl, masters, targets).restore_(list(targets), list(masters))
