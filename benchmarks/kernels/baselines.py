"""Libraries that do the same jobs, as functions of the same inputs. All need a GPU; Liger and Apex are taken where they
are installed."""

import contextlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rmfast import kernels

Rivals = dict[str, Callable[..., Any]]


def _liger(device: torch.device) -> bool:
    return device.type == "cuda" and find_spec("liger_kernel") is not None


def rms_norm(device: torch.device) -> Rivals:
    rivals: Rivals = {}
    if _liger(device):
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        # Not in place: that would overwrite the gradient that is handed in again at the next call.
        rivals["liger"] = lambda x, w: LigerRMSNormFunction.apply(x, w, 1e-5, 0.0, "llama", False)
    # Another project has Apex's name on PyPI: that one has no such module.
    with contextlib.suppress(ImportError):
        if device.type == "cuda":
            from apex.normalization.fused_layer_norm import fused_rms_norm_affine

            rivals["apex"] = lambda x, w: fused_rms_norm_affine(x, w.to(x.dtype), x.shape[-1:], 1e-5)
    return rivals


def add_rms_norm(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return {"liger": lambda x, residual, w: LigerFusedAddRMSNormFunction.apply(x, residual, w, 1e-5)}


def swiglu(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return {"liger": lambda gate_up: LigerSiLUMulFunction.apply(*gate_up.chunk(2, dim=-1))}


def rope(device: torch.device, positions: Tensor, inv_freq: Tensor) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.rope import LigerRopeFunction

    # Tables as transformers hands them over; making them is not measured, rotating in place is Liger's way.
    angles = (positions[:, None] * inv_freq).repeat(1, 2)[None]
    cos, sin = angles.cos(), angles.sin()

    def call(q: Tensor, k: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (x.transpose(0, 1)[None] for x in (q, k))
        q, k = LigerRopeFunction.apply(q, k, cos.to(q.dtype), sin.to(q.dtype))
        return q[0].transpose(0, 1), k[0].transpose(0, 1)

    return {"liger": call}


def linear_log_prob(device: torch.device) -> Rivals:
    if not _liger(device):
        return {}
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def call(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """The sum of the log-probabilities; without entropy, and with the gradients made in the forward pass."""
        out = LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, target, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32
        )
        return -(out[0] if isinstance(out, tuple) else out)

    return {"liger (cross-entropy)": call}


def prefix_attention(device: torch.device, layout: Tensor) -> Rivals:
    if device.type != "cuda":
        return {}
    flash = partial(kernels.prefix_attention, impl="flash")
    return {"flex": flex_attention(layout), "flash + merge": flash}


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
