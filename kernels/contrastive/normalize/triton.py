"""Triton kernels of L2 normalisation over rows and of its gradient, which the losses share."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.launch import as_rows, launch, maths

BLOCK = 64 if INTERPRETED else 1024  # columns of a row at a time


@triton.jit
def normalize_fwd_kernel(
    x_ptr, normed_ptr, length_ptr, width, x_stride, STORE: tl.constexpr, BLOCK: tl.constexpr, MATHS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), MATHS)
    for start in range(0, width, BLOCK):
        x = tl.load(x_ptr + row * x_stride + start + column, start + column < width, 0.0).to(MATHS)
        squares += x * x
    length = tl.sqrt(tl.sum(squares, 0))
    length = tl.where(length < 1e-12, 1e-12, length)  # as F.normalize; NaN stays
    tl.store(length_ptr + row, length)
    if STORE:
        for start in range(0, width, BLOCK):
            mask = start + column < width
            x = tl.load(x_ptr + row * x_stride + start + column, mask, 0.0).to(MATHS)
            tl.store(normed_ptr + row * width + start + column, x / length, mask)


@triton.jit
def normalize_bwd_kernel(
    grad_ptr, scale_ptr, x_ptr, length_ptr, grad_x_ptr, width, x_stride,
    DIVIDED: tl.constexpr, BLOCK: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    length = tl.load(length_ptr + row)
    products = tl.zeros((BLOCK,), MATHS)
    for start in range(0, width, BLOCK):
        mask = start + column < width
        x = tl.load(x_ptr + row * x_stride + start + column, mask, 0.0).to(MATHS)
        products += x / length * tl.load(grad_ptr + row * width + start + column, mask, 0.0)
    # A clamped length is a constant.
    along = tl.where(length > 1e-12, tl.sum(products, 0), 0.0)
    scale = tl.load(scale_ptr)
    if not DIVIDED:
        scale /= length
    for start in range(0, width, BLOCK):
        mask = start + column < width
        x = tl.load(x_ptr + row * x_stride + start + column, mask, 0.0).to(MATHS)
        grad = tl.load(grad_ptr + row * width + start + column, mask, 0.0)
        tl.store(grad_x_ptr + row * width + start + column, scale * (grad - x / length * along), mask)


def normalize_fwd(x: Tensor, length: Tensor, normed: Tensor | None = None) -> None:
    """Write max(|x|, 1e-12) of every row of x [N, d] into length [N], and x / length into normed [N, d] if given."""
    rows = as_rows(x)
    block = min(BLOCK, max(16, triton.next_power_of_2(rows.shape[1])))
    launch(
        normalize_fwd_kernel, (len(rows),), rows, normed if normed is not None else length, length, rows.shape[1],
        rows.stride(0), STORE=normed is not None, BLOCK=block, MATHS=maths(x), num_warps=4 if block > 256 else 1,
    )  # fmt: skip


def normalize_bwd(grad: Tensor, scale: Tensor, x: Tensor, length: Tensor, *, divided: bool) -> Tensor:
    """scale * the gradient of x, from that of x / length, or (`divided`) from that already divided by length.

    Args:
        grad: [N, d], contiguous, in the dtype of the maths. scale: scalar. length: [N], as `normalize_fwd` wrote it.
    """
    rows = as_rows(x)
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    block = min(BLOCK, max(16, triton.next_power_of_2(rows.shape[1])))
    launch(
        normalize_bwd_kernel, (len(rows),), grad, scale, rows, length, out, rows.shape[1], rows.stride(0),
        DIVIDED=divided, BLOCK=block, MATHS=maths(x), num_warps=4 if block > 256 else 1,
    )  # fmt: skip
    return out


def lengths(x: Tensor) -> Tensor:
    """max(|x|, 1e-12) of every row of x [N, d]."""
    out = torch.empty(len(x), dtype=maths_dtype(x), device=x.device)
    normalize_fwd(x, out)
    return out
