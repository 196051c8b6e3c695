"""Device functions that several kernels use."""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc, UP: tl.constexpr):
    """acc + a @ b, accumulated in acc's dtype. UP: multiply in acc's dtype (the interpreter gets bf16 products wrong).

    fp32 operands are multiplied exactly, not in tf32.
    """
    if UP:
        a = a.to(acc.dtype)
        b = b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def tanh(x):
    """tanh without libdevice, which the interpreter lacks; exact to rounding for any |x|."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)
