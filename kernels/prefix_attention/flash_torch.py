"""torch's own varlen flash attention (FlashAttention-2), forward and backward, with its log-sum-exp."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def describe() -> str:
    """The provider and its version."""
    return f"torch {torch.__version__}"


def forward(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output [T, Hq, D] and log-sum-exp of the logits [Hq, T], natural; 0 and +inf for a query without keys."""
    options = (max_q, max_k, 0.0, causal, False)  # no dropout, no mask of it
    out, lse, *_ = aten._flash_attention_forward(q, k, v, starts_q, starts_k, *options, scale=scale)
    return out, lse


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Flash attention adds up dq with atomics unless torch's switch for the whole process forbids it."""
    memory: Any = torch.utils.deterministic
    before, filled = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    memory.fill_uninitialized_memory = False  # else every buffer of the call is written once more
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = filled


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, starts_q: Tensor, starts_k: Tensor,
    max_q: int, max_k: int, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv. dq of a query without keys, dk and dv of a key without queries are not relied upon."""
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # state of the dropout
    options = (max_q, max_k, 0.0, causal, unused, unused)
    with deterministic():
        return aten._flash_attention_backward(grad, q, k, v, out, lse, starts_q, starts_k, *options, scale=scale)
