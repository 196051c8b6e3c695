"""Triton kernels of RMSNorm and their launchers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import as_rows, cdiv, launch, maths, row_block, row_starts, row_warps

# Programs of a backward over whole tiles, more over smaller ones (the norms of single heads have short rows). Four for
# each of an H100's 132 processors: with fewer too little is read at a time. Not asked of the device, because the
# weight's gradient is summed within each program, then over them, in fixed order.
PARTIALS = 528
TILE = 4096


# No load's width depends on them: compiled in, the heads of queries and those of keys would each have kernels.
SIZES = ["rows", "group"]


@triton.jit
def _start(row, group, outer, inner, GROUPED: tl.constexpr):
    """Where rows begin that lie in groups of `group`: rows `inner` elements apart, groups `outer`."""
    if not GROUPED:
        return row * outer
    row = row.to(tl.int32)  # a division of 64 bits takes a hundred instructions
    return (row // group).to(tl.int64) * outer + (row % group).to(tl.int64) * inner


@triton.jit(do_not_specialize=SIZES)
def rms_norm_fwd_kernel(
    x_ptr, residual_ptr, weight_ptr, normed_ptr, sum_ptr, rstd_ptr, rows, width, group, x_outer,
    x_inner, residual_stride,
    EPS: tl.constexpr, ADD: tl.constexpr, GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    column = tl.arange(0, COLUMNS)  # [C]
    mask = (row < rows)[:, None] & (column < width)[None, :]
    out = row[:, None] * width + column[None, :]
    x = tl.load(x_ptr + _start(row, group, x_outer, x_inner, GROUPED)[:, None] + column[None, :], mask, 0.0).to(MATHS)
    if ADD:
        x += tl.load(residual_ptr + row[:, None] * residual_stride + column[None, :], mask, 0.0).to(MATHS)
        stored = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + out, stored, mask)
        x = stored.to(MATHS)  # the norm is taken of the sum as it is returned
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + EPS)
    weight = tl.load(weight_ptr + column, column < width, 0.0).to(MATHS)
    tl.store(rstd_ptr + row, rstd, row < rows)
    tl.store(normed_ptr + out, x * rstd[:, None] * weight[None, :], mask)


@triton.jit(do_not_specialize=SIZES)
def rms_norm_bwd_kernel(
    grad_ptr, grad_sum_ptr, x_ptr, weight_ptr, rstd_ptr, grad_x_ptr, partial_ptr, rows, width, grad_stride,
    grad_sum_stride, group, x_outer, x_inner,
    ADD: tl.constexpr, GROUPED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, COLUMNS)  # [C]
    weight = tl.load(weight_ptr + column, column < width, 0.0).to(MATHS)
    grad_weight = tl.zeros((ROWS, COLUMNS), MATHS)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
        mask = (row < rows)[:, None] & (column < width)[None, :]
        # All that is read is on its way before the first sum waits for it.
        rstd = tl.load(rstd_ptr + row, row < rows, 0.0)
        x = tl.load(x_ptr + _start(row, group, x_outer, x_inner, GROUPED)[:, None] + column[None, :], mask, 0.0)
        grad = tl.load(grad_ptr + row[:, None] * grad_stride + column[None, :], mask, 0.0).to(MATHS)
        if ADD:
            grad_sum = tl.load(grad_sum_ptr + row[:, None] * grad_sum_stride + column[None, :], mask, 0.0)
        x = x.to(MATHS) * rstd[:, None]
        grad_weight += grad * x
        grad *= weight[None, :]
        grad_x = rstd[:, None] * (grad - x * (tl.sum(grad * x, 1) / width)[:, None])
        if ADD:
            grad_x += grad_sum.to(MATHS)
        tl.store(grad_x_ptr + row[:, None] * width + column[None, :], grad_x, mask)
    tl.store(partial_ptr + program * width + column, tl.sum(grad_weight, 0), column < width)


def rms_norm_fwd(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x, residual [..., d]; weight [d] -> normed, x + residual (empty without a residual), rstd [rows]."""
    rows, group, outer, inner = row_starts(x)
    added = rows if residual is None else as_rows(residual)
    count, width = x.shape[:-1].numel(), x.shape[-1]
    normed = x.new_empty(x.shape)
    total = torch.empty_like(normed) if residual is not None else normed.new_empty(0)
    rstd = torch.empty(count, dtype=maths_dtype(x), device=x.device)
    tile, columns = row_block(width, TILE)
    launch(
        rms_norm_fwd_kernel, (cdiv(count, tile),), rows, added, weight.contiguous(), normed, total, rstd,
        count, width, group, outer, inner, added.stride(0),
        EPS=eps, ADD=residual is not None, GROUPED=group > 0, ROWS=tile, COLUMNS=columns, MATHS=maths(x),
        num_warps=row_warps(tile * columns),
    )  # fmt: skip
    return normed, total, rstd


def rms_norm_bwd(
    grad: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x (the sum, where there was a residual; `grad_sum` is what reached it elsewhere) and of weight."""
    rows, group, outer, inner = row_starts(x)
    grads = as_rows(grad)
    sums = grads if grad_sum is None else as_rows(grad_sum)
    count, width = grads.shape
    grad_x = x.new_empty(x.shape)
    tile, columns = row_block(width, TILE)
    # A thread has 8 elements of a row: with more, their registers leave room for too few programs at a time.
    programs = min(PARTIALS * max(1, TILE // (tile * columns)), cdiv(count, tile))
    partial = torch.empty(programs, width, dtype=maths_dtype(x), device=x.device)
    launch(
        rms_norm_bwd_kernel, (programs,), grads, sums, rows, weight.contiguous(), rstd, grad_x, partial,
        count, width, grads.stride(0), sums.stride(0), group, outer, inner,
        ADD=grad_sum is not None, GROUPED=group > 0, ROWS=tile, COLUMNS=columns, MATHS=maths(x),
        num_warps=min(16, max(4, tile * columns // 256)),
    )  # fmt: skip
    return grad_x, partial.sum(0).to(weight.dtype)
