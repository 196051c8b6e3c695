"""AdamW and the norm by NVIDIA's apex: the kernels of its FusedAdam in the form that is made for CUDA graphs.

That form (`multi_tensor_adam_capturable`) takes the rate, the number of the step, a factor of the gradients and the
order to skip from the device, so that clipping and skipping wait for nothing. apex's FusedAdam around it has no place
for a rate that changes each step, nor for a factor; hence the kernels are called directly.
"""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 2048 * 32
"""Elements of a thread block, as apex's own callers choose it."""
LARGEST = 2**31 - 1
"""Elements of a tensor: the kernels count them in 32 bits."""
BUILD = "csrc/README.md says how to build it"


@cache
def missing() -> str | None:
    """Why apex's kernels cannot be called, or None."""
    if find_spec("amp_C") is None:
        return _without_kernels()
    try:
        import amp_C
    except ImportError as error:
        return f"apex's kernels (amp_C) do not load: {error}"
    names = [name for name in ("multi_tensor_adam_capturable", "multi_tensor_l2norm") if not hasattr(amp_C, name)]
    return f"the apex that is installed is too old: its amp_C has no {names[0]}; {BUILD}" if names else None


def _without_kernels() -> str:
    spec = find_spec("apex")
    if spec is None:
        return f"NVIDIA's apex is not installed: {BUILD} (the apex on PyPI is another project)"
    if any((Path(place) / "optimizers").is_dir() for place in spec.submodule_search_locations or []):
        return f"the apex that is installed was built without its CUDA kernels (amp_C): {BUILD}"
    return (
        f"the apex that is installed{_version()} is not NVIDIA's but the project of that name on PyPI, a toolkit for "
        f"Pyramid: uninstall it (pip uninstall apex); NVIDIA's is built from source, {BUILD}"
    )


def _version() -> str:
    try:
        return f" {version('apex')}"
    except PackageNotFoundError:
        return ""


def describe() -> str:
    """apex and its version, for a run's log."""
    return f"apex{_version()}"


def refusal(device: torch.device, masters: Sequence[Tensor] = (), others: Sequence[Tensor] = ()) -> str | None:
    """Why the kernels cannot take such tensors, or None."""
    tensors = (*masters, *others)
    if (reason := missing()) is not None:
        return reason
    if device.type != "cuda" or any(t.device != device for t in tensors):
        return f"it takes tensors on one GPU, got {device.type}"
    return unfit(tensors)


def unfit(tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot take tensors, wherever they are."""
    if any(t.dtype != torch.float32 for t in tensors):
        return "it takes tensors in fp32"
    if not all(t.is_contiguous() for t in tensors):
        return "it takes contiguous tensors"
    return next(
        (f"a tensor has {t.numel():,} elements, above {LARGEST:,}" for t in tensors if t.numel() > LARGEST), None
    )


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
    """One call for each weight decay. Gradients are multiplied by 1 / `grad_scale` in place, unless skipped."""
    import amp_C

    device = weights[0].device
    rate = torch.full((), lr, device=device)
    factor = torch.ones((), device=device) if grad_scale is None else grad_scale.double().reciprocal().float()
    skipped = torch.zeros((), dtype=torch.int32, device=device) if skip is None else skip.to(torch.int32)
    number = step.to(torch.int32)
    for decay in sorted(set(weight_decay)):
        # Without the empty ones: behind an empty last tensor the last launch is left out.
        chosen = [i for i, d in enumerate(weight_decay) if d == decay and weights[i].numel()]
        if chosen:
            lists = [[tensors[i] for i in chosen] for tensors in (grads, weights, exp_avg, exp_avg_sq)]
            # 1, 1: decay apart from the gradient (AdamW), moments with bias correction
            amp_C.multi_tensor_adam_capturable(
                CHUNK, skipped, lists, rate, beta1, beta2, eps, number, 1, 1, decay, factor
            )


def gradient_norm(grads: list[Tensor]) -> Tensor:
    """Sums in fp32, in fixed order: squares of gradients above 1.8e19 overflow, and such a step is left out."""
    import amp_C

    full = [grad for grad in grads if grad.numel()]
    if not full:
        return torch.zeros((), device=grads[0].device)
    nonfinite = torch.zeros((), dtype=torch.int32, device=grads[0].device)  # the norm says it too
    norm, _ = amp_C.multi_tensor_l2norm(CHUNK, nonfinite, [full], False)
    return norm.reshape(())
