"""Varlen flash attention of the package flash_attn (FlashAttention-2), forward and backward, with its log-sum-exp.

The two calls below its autograd function are taken: both halves of a merged attention get the merged output and
log-sum-exp in their backward, which the public function would not let in. Their signatures are the same from 2.7.0 to
2.8.4, but for arguments with defaults at the end.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

OLDEST = (2, 7)
ABSENT = "the package flash_attn is not installed (pip install --no-build-isolation 'rmfast[flash]')"


@cache
def missing() -> str | None:
    """Why the package cannot be used, or None."""
    if find_spec("flash_attn") is None:
        return ABSENT
    try:
        import flash_attn
        import flash_attn.flash_attn_interface
    except ImportError as error:
        return f"the package flash_attn does not load: {error}"
    version: str = flash_attn.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"flash_attn {version} is older than {'.'.join(map(str, OLDEST))}"
    return None


def describe() -> str:
    """The provider and its version."""
    import flash_attn

    return f"flash_attn {flash_attn.__version__}"


def forward(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `flash_torch.forward`."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    out, lse, *_ = _flash_attn_varlen_forward(
        q, k, v, starts_q, starts_k, max_q, max_k, dropout_p=0.0, softmax_scale=scale, causal=causal
    )
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, starts_q: Tensor, starts_k: Tensor,
    max_q: int, max_k: int, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `flash_torch.backward`."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    _flash_attn_varlen_backward(
        grad, q, k, v, out, lse, dq, dk, dv, starts_q, starts_k, max_q, max_k, dropout_p=0.0, softmax_scale=scale,
        causal=causal, window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, deterministic=True,
    )  # fmt: skip
    return dq, dk, dv
