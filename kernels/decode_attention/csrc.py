"""Decode attention of the compiled library."""

import torch
from torch import Tensor

from rmfast.kernels import compiled


def refusal(q: Tensor) -> str | None:
    """Why the library cannot take such tensors, or None."""
    if q.device.type != "cpu" or q.dtype != torch.float32:
        return f"it takes fp32 on the CPU, got {q.dtype} on {q.device.type}"
    return compiled.missing()


def decode_attention(
    q: Tensor,
    prompt_kv: Tensor,
    own_kv: Tensor,
    layout: Tensor,
    append: tuple[Tensor, Tensor] | None,
    scale: float,
    window: int | None,
) -> Tensor:
    """Appends and attends in one pass."""
    out = torch.empty(q.shape, dtype=q.dtype)
    k, v = append or (None, None)
    torch.ops.rmfast_C.decode_attention_(out, q, prompt_kv, own_kv, layout.contiguous(), k, v, scale, window or 0)
    return out
