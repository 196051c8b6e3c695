"""Triton kernels of L2 normalisation over rows and of its gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.launch import as_rows, cdiv, launch, maths, next_power_of_2

WIDTH, TILE = (64, 1024) if INTERPRETED else (512, 2048)  # columns and elements that a program holds at a time


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["length_ptr"])
def normalize_fwd_kernel(
    x_ptr, normed_ptr, length_ptr, rows, width, x_stride,
    STORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    squares = tl.zeros((ROWS, COLUMNS), MATHS)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask, 0.0).to(MATHS)
        squares += x * x
    shortest = tl.full((), 1e-12, MATHS)  # as F.normalize; in the dtype of the maths, to compare equal
    length = tl.sqrt(tl.sum(squares, 1))
    length = tl.where(length < shortest, shortest, length)  # NaN stays
    tl.store(length_ptr + row, length, row < rows)
    if STORE:
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = (row < rows)[:, None] & (column < width)[None, :]
            x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask, 0.0).to(MATHS)
            tl.store(normed_ptr + row[:, None] * width + column[None, :], x / length[:, None], mask)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["length_ptr"])
def normalize_bwd_kernel(
    grad_ptr, scale_ptr, x_ptr, length_ptr, grad_x_ptr, rows, width, x_stride,
    DIVIDED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    length = tl.load(length_ptr + row, row < rows, 1.0)
    products = tl.zeros((ROWS, COLUMNS), MATHS)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask, 0.0).to(MATHS)
        products += x / length[:, None] * tl.load(grad_ptr + row[:, None] * width + column[None, :], mask, 0.0)
    # A clamped length is a constant.
    along = tl.where(length == tl.full((), 1e-12, MATHS), 0.0, tl.sum(products, 1))
    scale = tl.zeros((ROWS,), MATHS) + tl.load(scale_ptr)
    if not DIVIDED:
        scale /= length
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < width)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask, 0.0).to(MATHS)
        grad = tl.load(grad_ptr + row[:, None] * width + column[None, :], mask, 0.0)
        grad = scale[:, None] * (grad - x / length[:, None] * along[:, None])
        tl.store(grad_x_ptr + row[:, None] * width + column[None, :], grad, mask)


def sweep_tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a tile that sweeps along rows of `width`."""
    columns = min(WIDTH, max(16, next_power_of_2(width)))
    return max(1, min(16, TILE // columns)), columns


def normalize_fwd(x: Tensor, length: Tensor, normed: Tensor | None = None) -> None:
    """Write max(|x|, 1e-12) of every row of x [N, d] into length [N], and x / length into normed [N, d] if given."""
    rows = as_rows(x)
    count, width = rows.shape
    tile, columns = sweep_tile(width)
    launch(
        normalize_fwd_kernel, (cdiv(count, tile),), rows, length if normed is None else normed, length, count,
        width, rows.stride(0), STORE=normed is not None, ROWS=tile, COLUMNS=columns, MATHS=maths(x), num_warps=4,
    )  # fmt: skip


def normalize_bwd(grad: Tensor, scale: Tensor, x: Tensor, length: Tensor, *, divided: bool) -> Tensor:
    """scale * the gradient of x, from that of x / length, or (`divided`) from that already divided by length.

    Args:
        grad: [N, d], contiguous, in the dtype of the maths. scale: scalar. length: [N], as `normalize_fwd` wrote it.
    """
    rows = as_rows(x)
    count, width = rows.shape
    tile, columns = sweep_tile(width)
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    launch(
        normalize_bwd_kernel, (cdiv(count, tile),), grad, scale, rows, length, out, count, width, rows.stride(0),
        DIVIDED=divided, ROWS=tile, COLUMNS=columns, MATHS=maths(x), num_warps=4,
    )  # fmt: skip
    return out


def lengths(x: Tensor) -> Tensor:
    """max(|x|, 1e-12) of every row of x [N, d]."""
    out = torch.empty(len(x), dtype=maths_dtype(x), device=x.device)
    normalize_fwd(x, out)
    return out
