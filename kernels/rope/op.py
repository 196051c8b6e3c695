"""Rotary position embedding, alone and with the split of a fused product: checks, dispatch, and the custom ops."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, is_index, maths_dtype, use_triton
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.rope import reference


@custom_op("rmfast::rope")
def _rope(q: Tensor, k: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.rope import triton

    return triton.rope(q, k, tables)


@custom_op("rmfast::rope_backward")
def _rope_backward(grad_q: Tensor, grad_k: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.rope import triton

    return triton.rope(grad_q, grad_k, tables, inverse=True)


@_rope.register_fake
@_rope_backward.register_fake
def _(q: Tensor, k: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _rope_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[2])


def _rope_grad(ctx, grad_q: Tensor | None, grad_k: Tensor | None):  # type: ignore[no-untyped-def]
    (tables,) = ctx.saved_tensors
    if grad_q is not None and grad_k is not None:
        return *_rope_backward(grad_q, grad_k, tables), None
    grad = grad_k if grad_q is None else grad_q
    assert grad is not None
    turned, _ = _rope_backward(grad, grad[:, :0], tables)  # the other has no gradient, so none of its heads is turned
    return (None, turned, None) if grad_q is None else (turned, None, None)


_rope.register_autograd(_rope_grad, setup_context=_rope_setup)


@custom_op("rmfast::split_rope")
def _split_rope(qkv: Tensor, tables: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.rope import triton

    return triton.split_rope_fwd(qkv, tables, heads, kv_heads, head_dim)


@_split_rope.register_fake
def _(qkv: Tensor, tables: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty((qkv.shape[0], count, head_dim)) for count in (heads, kv_heads, kv_heads))
    return q, k, v


@custom_op("rmfast::split_rope_backward")
def _split_rope_backward(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, tables: Tensor) -> Tensor:
    from rmfast.kernels.rope import triton

    return triton.split_rope_bwd(grad_q, grad_k, grad_v, tables)


@_split_rope_backward.register_fake
def _(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, tables: Tensor) -> Tensor:
    tokens, heads, head_dim = grad_q.shape
    return grad_q.new_empty((tokens, (heads + 2 * grad_k.shape[1]) * head_dim))


def _split_rope_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[1])
    ctx.heads = inputs[2:]


def _split_rope_grad(ctx, *grads: Tensor | None):  # type: ignore[no-untyped-def]
    (tables,) = ctx.saved_tensors
    if any(grad is None for grad in grads):
        heads, kv_heads, head_dim = ctx.heads
        some = next(grad for grad in grads if grad is not None)
        counts = zip(grads, (heads, kv_heads, kv_heads), strict=True)
        grads = tuple(some.new_zeros(len(some), n, head_dim) if grad is None else grad for grad, n in counts)
    return _split_rope_backward(*grads, tables), None, None, None, None


_split_rope.register_autograd(_split_rope_grad, setup_context=_split_rope_setup)


def rope_tables(
    positions: Tensor, inv_freq: Tensor, *, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What `rotate` and `split_rope` turn heads by: scale cos and scale sin of positions times frequencies.

    Args:
        positions: int [T].
        inv_freq: [D / 2], radians a position.
        scale: factor on the heads (the attention factor of some RoPE scalings).
        dtype: of the heads.

    Returns:
        [2, T, D / 2], fp32 (fp64 for heads in fp64), as the angles are.

    Raises:
        ValueError: positions are not int [T].
    """
    whole = is_index(positions) or not positions.numel()  # an empty tensor is a float one unless told otherwise
    check(positions.dim() == 1 and whole, "rope", "positions must be int [T]")
    tables = reference.tables(positions, inv_freq, torch.float64 if dtype == torch.float64 else torch.float32)
    return tables if scale == 1.0 else tables * scale


def _check_tables(op: str, tables: Tensor, heads: Tensor, head_dim: int) -> None:
    check(head_dim > 0 and head_dim % 2 == 0, op, lambda: f"head_dim must be even and positive, got {head_dim}")
    shape, dtype = (2, len(heads), head_dim // 2), maths_dtype(heads)
    fits = tables.shape == shape and tables.dtype == dtype
    check(fits, op, lambda: f"tables must be {dtype} {list(shape)}, got {tables.dtype} {list(tables.shape)}")


def rotate(q: Tensor, k: Tensor, tables: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """`rope` by tables that are made once for many layers. Differentiable in q and k.

    Args:
        q: [T, Hq, D]. k: [T, Hkv, D]. tables: from `rope_tables`.
        impl: "auto", "triton" or "reference".

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    op = "rope"
    check(q.dim() == 3 and k.dim() == 3, op, "q and k must be [tokens, heads, head_dim]")
    check(len(q) == len(k), op, lambda: f"q and k must be of one length, got {len(q)} and {len(k)}")
    check(q.shape[2] == k.shape[2], op, lambda: f"head_dim of q ({q.shape[2]}) and k ({k.shape[2]}) differ")
    check(q.dtype == k.dtype, op, lambda: f"dtypes of q ({q.dtype}) and k ({k.dtype}) differ")
    _check_tables(op, tables, q, q.shape[2])
    if use_triton(op, impl, q):
        return _rope(q, k, tables)
    cos, sin = tables[:, :, None]
    q_out, k_out = (reference.rotate(x.to(tables.dtype), cos, sin).to(x.dtype) for x in (q, k))
    return q_out, k_out


def rope(
    q: Tensor, k: Tensor, positions: Tensor, *, inv_freq: Tensor, scale: float = 1.0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding in Hugging Face's half-rotation. Differentiable in q and k.

    Source: Su et al., RoFormer, equation 34, with dimension i paired with i + D / 2 instead of its neighbour.

    Args:
        q: [T, Hq, D]. k: [T, Hkv, D]. positions: int [T].
        inv_freq: [D / 2], radians a position; angles are taken in fp32.
        scale: factor on both (the attention factor of some RoPE scalings).
        impl: "auto", "triton" or "reference".

    Returns:
        The rotated q and k, in their shapes and dtypes.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    check(q.dim() == 3, "rope", "q and k must be [tokens, heads, head_dim]")
    check(len(q) == len(positions), "rope", "q, k and positions must be of one length")
    check(inv_freq.shape == (q.shape[2] // 2,), "rope", lambda: f"inv_freq must be [{q.shape[2] // 2}]")
    return rotate(q, k, rope_tables(positions, inv_freq, scale=scale, dtype=q.dtype), impl=impl)


def split_rope(
    qkv: Tensor, tables: Tensor, *, heads: int, kv_heads: int, head_dim: int, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """A fused product split into queries, keys and values, with `rope` of the first two. Differentiable in qkv.

    The kernel splits and rotates in one pass, and writes the gradient of qkv in one pass.

    Args:
        qkv: [T, (heads + 2 kv_heads) head_dim]: queries, keys, values.
        tables: from `rope_tables`.
        impl: "auto", "triton" or "reference".

    Returns:
        q [T, heads, head_dim], k and v [T, kv_heads, head_dim], in qkv's dtype.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op, width = "split_rope", (heads + 2 * kv_heads) * head_dim
    check(heads > 0 and kv_heads > 0, op, lambda: f"heads and kv_heads must be positive, got {heads} and {kv_heads}")
    check(qkv.dim() == 2 and qkv.shape[1] == width, op, lambda: f"qkv must be [T, {width}], got {tuple(qkv.shape)}")
    _check_tables(op, tables, qkv, head_dim)
    if use_triton(op, impl, qkv):
        return _split_rope(qkv, tables, heads, kv_heads, head_dim)
    parts = qkv.unflatten(1, (heads + 2 * kv_heads, head_dim))
    q, k, v = parts.split((heads, kv_heads, kv_heads), dim=1)
    return *rotate(q, k, tables, impl="reference"), v
