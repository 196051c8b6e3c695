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
    """tanh without libdevice, which the interpreter lacks; to a few roundings for any x."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    # Below 1/2 the difference cancels: there the continued fraction x / (1 + x^2 / (3 + x^2 / (5 + ...))).
    square = x * x
    small = 11.0 + square / 13.0
    small = 9.0 + square / small
    small = 7.0 + square / small
    small = 5.0 + square / small
    small = 3.0 + square / small
    small = x / (1.0 + square / small)
    return tl.where(tl.abs(x) < 0.5, small, tl.where(x < 0, -t, t))
