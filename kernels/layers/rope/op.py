"""Rotary position embedding, alone and with the split of a fused product: checks, dispatch, and the custom ops."""

from torch import Tensor
from torch.library import custom_op

from rmfast.kernels.common import check, is_index, maths_dtype, use_triton
from rmfast.kernels.layers.rope import reference


@custom_op("rmfast::rope", mutates_args=())
def _rope(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.layers.rope import triton

    return triton.rope(q, k, positions, inv_freq, scale)


@custom_op("rmfast::rope_backward", mutates_args=())
def _rope_backward(
    grad_q: Tensor, grad_k: Tensor, positions: Tensor, inv_freq: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.layers.rope import triton

    return triton.rope(grad_q, grad_k, positions, inv_freq, scale, inverse=True)


@_rope.register_fake
@_rope_backward.register_fake
def _(q: Tensor, k: Tensor, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _rope_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, _, positions, inv_freq, ctx.scale = inputs
    ctx.save_for_backward(positions, inv_freq)


def _rope_grad(ctx, grad_q: Tensor, grad_k: Tensor):  # type: ignore[no-untyped-def]
    return *_rope_backward(grad_q, grad_k, *ctx.saved_tensors, ctx.scale), None, None, None


_rope.register_autograd(_rope_grad, setup_context=_rope_setup)


@custom_op("rmfast::split_rope", mutates_args=())
def _split_rope(
    qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, head_dim: int, inv_freq: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.layers.rope import triton

    return triton.split_rope_fwd(qkv, positions, heads, kv_heads, head_dim, inv_freq, scale)


@_split_rope.register_fake
def _(
    qkv: Tensor, positions: Tensor, heads: int, kv_heads: int, head_dim: int, inv_freq: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (qkv.new_empty((qkv.shape[0], count, head_dim)) for count in (heads, kv_heads, kv_heads))
    return q, k, v


@custom_op("rmfast::split_rope_backward", mutates_args=())
def _split_rope_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, positions: Tensor, inv_freq: Tensor, scale: float
) -> Tensor:
    from rmfast.kernels.layers.rope import triton

    return triton.split_rope_bwd(grad_q, grad_k, grad_v, positions, inv_freq, scale)


@_split_rope_backward.register_fake
def _(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, positions: Tensor, inv_freq: Tensor, scale: float) -> Tensor:
    tokens, heads, head_dim = grad_q.shape
    return grad_q.new_empty((tokens, (heads + 2 * grad_k.shape[1]) * head_dim))


def _split_rope_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, positions, _, _, _, inv_freq, ctx.scale = inputs
    ctx.save_for_backward(positions, inv_freq)


def _split_rope_grad(ctx, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor):  # type: ignore[no-untyped-def]
    grad = _split_rope_backward(grad_q, grad_k, grad_v, *ctx.saved_tensors, ctx.scale)
    return grad, None, None, None, None, None, None


_split_rope.register_autograd(_split_rope_grad, setup_context=_split_rope_setup)


def _check_positions(op: str, positions: Tensor) -> None:
    whole = is_index(positions) or not positions.numel()  # an empty tensor is a float one unless told otherwise
    check(positions.dim() == 1 and whole, op, "positions must be int [T]")


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
    check(q.dim() == 3 and k.dim() == 3, "rope", "q and k must be [tokens, heads, head_dim]")
    _check_positions("rope", positions)
    check(len(q) == len(k) == len(positions), "rope", "q, k and positions must be of one length")
    check(q.shape[2] == k.shape[2], "rope", f"head_dim of q ({q.shape[2]}) and k ({k.shape[2]}) differ")
    check(q.dtype == k.dtype, "rope", f"dtypes of q ({q.dtype}) and k ({k.dtype}) differ")
    check(q.shape[2] > 0 and q.shape[2] % 2 == 0, "rope", f"head_dim must be even and positive, got {q.shape[2]}")
    check(inv_freq.shape == (q.shape[2] // 2,), "rope", f"inv_freq must be [{q.shape[2] // 2}]")
    if use_triton("rope", impl, q):
        return _rope(q, k, positions, inv_freq, scale)
    dtype = maths_dtype(q)
    cos, sin = (table[:, None] * scale for table in reference.tables(positions, inv_freq, dtype))
    q_out, k_out = (reference.rotate(x.to(dtype), cos, sin).to(x.dtype) for x in (q, k))
    return q_out, k_out


def split_rope(
    qkv: Tensor,
    positions: Tensor,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    inv_freq: Tensor,
    scale: float = 1.0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A fused product split into queries, keys and values, with `rope` of the first two. Differentiable in qkv.

    The kernel splits and rotates in one pass, and writes the gradient of qkv in one pass.

    Args:
        qkv: [T, (heads + 2 kv_heads) head_dim]: queries, keys, values.
        positions, inv_freq, scale: as in `rope`.
        impl: "auto", "triton" or "reference".

    Returns:
        q [T, heads, head_dim], k and v [T, kv_heads, head_dim], in qkv's dtype.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op, width = "split_rope", (heads + 2 * kv_heads) * head_dim
    check(heads > 0 and kv_heads > 0, op, f"heads and kv_heads must be positive, got {heads} and {kv_heads}")
    check(head_dim > 0 and head_dim % 2 == 0, op, f"head_dim must be even and positive, got {head_dim}")
    check(qkv.dim() == 2 and qkv.shape[1] == width, op, f"qkv must be [T, {width}], got {tuple(qkv.shape)}")
    _check_positions(op, positions)
    check(positions.shape == qkv.shape[:1], op, "qkv and positions must be of one length")
    check(inv_freq.shape == (head_dim // 2,), op, f"inv_freq must be [{head_dim // 2}]")
    if use_triton(op, impl, qkv):
        return _split_rope(qkv, positions, heads, kv_heads, head_dim, inv_freq, scale)
    parts = qkv.unflatten(1, (heads + 2 * kv_heads, head_dim))
    q, k, v = parts.split((heads, kv_heads, kv_heads), dim=1)
    return *rope(q, k, positions, inv_freq=inv_freq, scale=scale, impl="reference"), v
