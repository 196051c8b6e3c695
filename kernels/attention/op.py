"""The public op: checks and dispatch."""

import torch
from torch import Tensor

from rmfast.kernels.attention import reference
from rmfast.kernels.common import check, check_impl


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    *,
    rows: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal attention in a pack of prompt groups; each response sees its group's prefix and itself. Differentiable.

    Args:
        q: [T, Hq, D], or [S, Hq, D] with `rows`.
        k, v: [T, Hkv, D]; Hkv divides Hq (grouped-query attention).
        layout: int32 [4, T] from `prefix_layout`.
        rows: int [S], the tokens whose queries `q` holds, in any order; default all T of them.
        scale: of the logits; default D ** -0.5.
        window: a query sees the `window` nearest keys, itself included, counted by position in its own sequence.
        softcap: logits become softcap * tanh(logits / softcap).
        impl: "auto" or "reference".

    Returns:
        [T, Hq, D] (or [S, Hq, D]) in q's dtype.

    Raises:
        ValueError: shapes, head counts or options that do not fit together.
    """
    op = "prefix_attention"
    check_impl(op, impl)
    check(q.dim() == k.dim() == v.dim() == 3, op, "q, k, v must be [tokens, heads, head_dim]")
    check(k.shape == v.shape, op, f"k {tuple(k.shape)} and v {tuple(v.shape)} differ")
    check(q.dtype == k.dtype == v.dtype, op, f"dtypes differ: q {q.dtype}, k {k.dtype}, v {v.dtype}")
    check(k.shape[1] > 0, op, "k and v need at least one head")
    check(q.shape[2] == k.shape[2], op, f"head_dim of q ({q.shape[2]}) and k ({k.shape[2]}) differ")
    check(q.shape[1] % k.shape[1] == 0, op, f"{k.shape[1]} key heads do not divide {q.shape[1]} query heads")
    check(layout.shape == (4, len(k)), op, f"layout must be [4, {len(k)}], got {tuple(layout.shape)}")
    check(layout.dtype == torch.int32, op, f"layout must be int32, got {layout.dtype}")
    check(len(q) == len(k if rows is None else rows), op, "q must hold one query a token, or one a row of `rows`")
    check(window is None or window > 0, op, f"window must be positive, got {window}")
    check(softcap is None or softcap > 0, op, f"softcap must be positive, got {softcap}")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return reference.prefix_attention(q, k, v, layout, rows, scale=scale, window=window, softcap=softcap)
