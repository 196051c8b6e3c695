"""Who else does the same jobs, as functions of the same inputs: libraries, which need a GPU (Liger and Apex where they
are installed), and the compiled ops of csrc/."""

import contextlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rmfast import kernels
from rmfast.kernels import compiled

Rivals = dict[str, Callable[..., Any]]


def liger(device: torch.device, module: str, name: str, made: Callable[[Any], Callable[..., Any]]) -> Rivals:
    """What is made of the `apply` of one of Liger's functions."""
    if device.type != "cuda" or find_spec("liger_kernel") is None:
        return {}
    return {"liger": made(getattr(import_module(f"liger_kernel.ops.{module}"), name).apply)}


def rms_norm(device: torch.device) -> Rivals:
    # Not in place: that would overwrite the gradient that is handed in again at the next call.
    rivals = liger(
        device, "rms_norm", "LigerRMSNormFunction", lambda f: lambda x, w: f(x, w, 1e-5, 0.0, "llama", False)
    )
    # Another project has Apex's name on PyPI: that one has no such module.
    with contextlib.suppress(ImportError):
        if device.type == "cuda":
            from apex.normalization.fused_layer_norm import fused_rms_norm_affine

            rivals["apex"] = lambda x, w: fused_rms_norm_affine(x, w.to(x.dtype), x.shape[-1:], 1e-5)
    return rivals


def add_rms_norm(device: torch.device) -> Rivals:
    return liger(device, "fused_add_rms_norm", "LigerFusedAddRMSNormFunction",
                 lambda f: lambda x, residual, w: f(x, residual, w, 1e-5))  # fmt: skip


def swiglu(device: torch.device) -> Rivals:
    return liger(device, "swiglu", "LigerSiLUMulFunction", lambda f: lambda gate_up: f(*gate_up.chunk(2, dim=-1)))


def rope(device: torch.device, positions: Tensor, inv_freq: Tensor) -> Rivals:
    # Tables as transformers hands them over; making them is not measured, rotating in place is Liger's way.
    angles = (positions[:, None] * inv_freq).repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()

    def made(rotate: Callable[..., Any]) -> Callable[..., Any]:
        def call(q: Tensor, k: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            q, k = (x.transpose(0, 1)[None] for x in (q, k))
            q, k = rotate(q, k, cos.to(q.dtype), sin.to(q.dtype))
            return q[0].transpose(0, 1), k[0].transpose(0, 1)

        return call

    return liger(device, "rope", "LigerRopeFunction", made)


def linear_log_prob(device: torch.device) -> Rivals:
    """The sum of the log-probabilities; without entropy, and with the gradients made in the forward pass."""

    def made(cross_entropy: Callable[..., Any]) -> Callable[..., Any]:
        def call(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
            options = (None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32)
            out = cross_entropy(hidden, weight, target, *options)
            return -(out[0] if isinstance(out, tuple) else out)

        return call

    found = liger(device, "fused_linear_cross_entropy", "LigerFusedLinearCrossEntropyFunction", made)
    return {f"{name} (cross-entropy)": call for name, call in found.items()}


def draw_tokens(device: torch.device, call: Callable[..., Any]) -> Rivals:
    """The compiled library, where it was built: the one contender that a CPU has."""
    return {"csrc": partial(call, impl="csrc")} if device.type == "cpu" and compiled.missing() is None else {}


def prefix_attention(device: torch.device, layout: Tensor) -> Rivals:
    if device.type != "cuda":
        return {}
    return {"flex": flex_attention(layout), "flash + merge": partial(kernels.prefix_attention, impl="flash")}


def flex_attention(layout: Tensor) -> Callable[..., Tensor]:
    """torch's FlexAttention, compiled; its block mask is made here and not measured."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    start, prefix_end, segment, _ = layout
    count = layout.shape[1]

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= start[q]) & (k <= q) & ((k < prefix_end[q]) | (k >= segment[q]))

    mask = create_block_mask(sees, None, None, count, count, device=layout.device)
    compiled = torch.compile(flex)

    def call(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)

    return call
