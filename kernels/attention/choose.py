"""Which engine attends faster, by trying both on a pack like those of the run."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rmfast.kernels.attention import flash
from rmfast.kernels.attention.op import prefix_attention
from rmfast.kernels.common import HAS_TRITON

Engine = Literal["triton", "flash"]


def milliseconds(step: Callable[[], object], device: torch.device, warmup: int = 2, repeats: int = 5) -> float:
    """Median time of `step` on a CUDA device."""
    times = []
    with torch.cuda.device(device):
        for i in range(warmup + repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            end.synchronize()
            if i >= warmup:
                times.append(begin.elapsed_time(end))
    return statistics.median(times)


def faster_engine(
    layout: Tensor,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    time: Callable[[Callable[[], object], torch.device], float] = milliseconds,
) -> Engine:
    """The engine that takes less time for forward and backward of one layer; "triton" if they take the same.

    For the start of a run, once: the engines differ in their last bits, so a run that chose again, or ranks that choose
    each for itself, would not be repeatable. Draws no numbers from the run's generators.

    Args:
        layout: int32 [4, T] of a typical pack.
        heads, kv_heads, head_dim: of the layer.
        dtype: of its activations.
        device: where the run computes.
        time: milliseconds that a step takes on a device.

    Returns:
        "flash" or "triton"; without trying where only one is possible. "triton" also where neither is (on the CPU):
        there `impl="auto"` means plain torch.
    """
    if flash.refusal(device, dtype, head_dim) is not None:
        return "triton"
    if not HAS_TRITON:
        return "flash"
    generator = torch.Generator(device).manual_seed(0)
    layout = layout.to(device)

    def random(width: int) -> Tensor:
        return torch.randn(layout.shape[1], width, head_dim, dtype=dtype, device=device, generator=generator)

    q, k, v, grad = random(heads), random(kv_heads), random(kv_heads), random(heads)
    leaves = tuple(x.requires_grad_() for x in (q, k, v))

    def step(impl: Engine) -> None:
        torch.autograd.grad(prefix_attention(q, k, v, layout, impl=impl), leaves, grad)

    with torch.enable_grad():
        return "flash" if time(partial(step, "flash"), device) < time(partial(step, "triton"), device) else "triton"
