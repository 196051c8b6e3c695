"""The public ops: checks, precision and dispatch."""

from torch import Tensor

from rmfast.kernels.common import check, check_impl, maths_dtype
from rmfast.kernels.layers import reference


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, impl: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. Differentiable.

    Args:
        x: [..., d]. weight: [d]. impl: "auto" or "reference".

    Returns:
        x's shape and dtype.

    Raises:
        ValueError: weight is not [d].
    """
    check_impl("rms_norm", impl)
    check(weight.shape == x.shape[-1:], "rms_norm", f"weight must be [{x.shape[-1]}], got {tuple(weight.shape)}")
    dtype = maths_dtype(x)
    return reference.rms_norm(x.to(dtype), weight.to(dtype), eps).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, *, eps: float, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The sum x + residual and its RMSNorm. Differentiable.

    Args:
        x, residual: [..., d]. weight: [d]. impl: "auto" or "reference".

    Returns:
        (normed, sum), both of x's shape and dtype; the norm is taken of the sum as it is returned.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check(x.shape == residual.shape, "add_rms_norm", f"shapes differ: {tuple(x.shape)}, {tuple(residual.shape)}")
    total = x + residual
    return rms_norm(total, weight, eps=eps, impl=impl), total


def swiglu(gate_up: Tensor, *, impl: str = "auto") -> Tensor:
    """silu(gate) * up for `gate_up` [T, 2 f], gate first -> [T, f]. Differentiable.

    Raises:
        ValueError: the last dimension is odd.
    """
    check_impl("swiglu", impl)
    check(gate_up.shape[-1] % 2 == 0, "swiglu", f"the last dimension must be even, got {gate_up.shape[-1]}")
    return reference.swiglu(gate_up.to(maths_dtype(gate_up))).to(gate_up.dtype)


def rope(
    q: Tensor, k: Tensor, positions: Tensor, *, inv_freq: Tensor, scale: float = 1.0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding in Hugging Face's half-rotation. Differentiable in q and k.

    Args:
        q: [T, Hq, D]. k: [T, Hkv, D]. positions: int [T].
        inv_freq: [D / 2], radians a position; angles are taken in fp32.
        scale: factor on both (the attention factor of some RoPE scalings).
        impl: "auto" or "reference".

    Returns:
        The rotated q and k, in their shapes and dtypes.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check_impl("rope", impl)
    check(q.dim() == 3 and k.dim() == 3, "rope", "q and k must be [tokens, heads, head_dim]")
    check(len(q) == len(k) == len(positions), "rope", "q, k and positions must be of one length")
    check(q.shape[2] == k.shape[2], "rope", f"head_dim of q ({q.shape[2]}) and k ({k.shape[2]}) differ")
    check(q.shape[2] % 2 == 0, "rope", f"head_dim must be even, got {q.shape[2]}")
    check(inv_freq.shape == (q.shape[2] // 2,), "rope", f"inv_freq must be [{q.shape[2] // 2}]")
    dtype = maths_dtype(q)
    angles = positions.to(dtype)[:, None] * inv_freq.to(dtype)
    cos, sin = (angles.cos() * scale)[:, None], (angles.sin() * scale)[:, None]
    q_out, k_out = (reference.rotate(x.to(dtype), cos, sin).to(x.dtype) for x in (q, k))
    return q_out, k_out
