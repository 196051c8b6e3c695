"""Activation recomputation: less memory for some or all of the forward again in the backward."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import rmfast.kernels  # noqa: F401  (registers ops that are kept below, as does the next line)
import rmfast.models.low_rank  # noqa: F401

Recompute = Literal["none", "selective", "full"]

aten = torch.ops.aten
# What is dear to compute is kept; the elementwise rest (norms, RoPE, SwiGLU) is cheap to run again.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.rmfast.prefix_attention.default,
    torch.ops.rmfast.flash_prefix_attention.default,
    torch.ops.rmfast.adapted_linear.default,
}


def _policy(_context: object, op: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed(layer: Callable[..., Any], mode: Recompute) -> Callable[..., Any]:
    """The layer as a function that keeps as little for its backward as `mode` says."""
    if mode == "none":
        return layer
    if mode == "full":
        return partial(checkpoint, layer, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, layer, use_reentrant=False, context_fn=contexts)
