"""Triton kernels of Sinkhorn's iterations and their launchers, over one or two views of a batch at once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import cdiv, launch, maths
from rmfast.kernels.sinkhorn.tiles import column_tile, row_tile

PROGRAMS = 1024  # few columns share them by splitting the rows; the parts are added in fixed order


@triton.jit
def add_exp(top, total, x, AXIS: tl.constexpr):
    """The running maximum and the sum of exp(value - maximum), after one more tile x along an axis."""
    old, top = top, tl.maximum(top, tl.max(x, AXIS))
    total = total * tl.exp(old - top) + tl.sum(tl.exp(x - tl.expand_dims(top, AXIS)), AXIS)
    return top, total


@triton.jit(do_not_specialize=["rows"])
def sinkhorn_columns_kernel(
    scores_ptr, epsilon_ptr, f_ptr, part_ptr, rows, columns, stride, span,
    HAS_F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """part [views, splits, columns] = -log sum over the split's rows of exp(scores / epsilon + f)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split, view = tl.program_id(1), tl.program_id(2)
    epsilon = tl.load(epsilon_ptr)
    top = tl.full((COLUMNS,), -1e30, MATHS)
    total = tl.zeros((COLUMNS,), MATHS)
    for start in range(split * span, tl.minimum(split * span + span, rows), ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        place = (view.to(tl.int64) * rows + row)[:, None] * stride + column[None, :]
        x = tl.load(scores_ptr + place, mask, float("-inf")).to(MATHS) / epsilon
        if HAS_F:
            x += tl.load(f_ptr + view * rows + row, row < rows, 0.0)[:, None]
        top, total = add_exp(top, total, x, 0)
    out = (view * tl.num_programs(1) + split) * columns + column
    tl.store(part_ptr + out, -(top + tl.log(total)), column < columns)


@triton.jit(do_not_specialize=["parts"])
def sinkhorn_merge_kernel(part_ptr, g_ptr, parts, columns, COLUMNS: tl.constexpr, MATHS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    view = tl.program_id(1)
    top = tl.full((COLUMNS,), -1e30, MATHS)
    total = tl.zeros((COLUMNS,), MATHS)
    for part in range(0, parts):
        x = -tl.load(part_ptr + (view * parts + part) * columns + column, column < columns, 0.0)
        top, total = add_exp(top, total, x[None, :], 0)
    tl.store(g_ptr + view * columns + column, -(top + tl.log(total)), column < columns)


@triton.jit(do_not_specialize=["rows"])
def sinkhorn_rows_kernel(
    scores_ptr, epsilon_ptr, g_ptr, out_ptr, rows, columns, stride,
    HAS_G: tl.constexpr, CODES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """f [views, rows] = -log sum over columns of exp(scores / epsilon + g), or with CODES the exp over that sum."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    view = tl.program_id(1)
    epsilon = tl.load(epsilon_ptr)
    scores_ptr += view.to(tl.int64) * rows * stride
    top = tl.full((ROWS,), -1e30, MATHS)
    total = tl.zeros((ROWS,), MATHS)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        place = row.to(tl.int64)[:, None] * stride + column[None, :]
        x = tl.load(scores_ptr + place, mask, float("-inf")).to(MATHS) / epsilon
        if HAS_G:
            x += tl.load(g_ptr + view * columns + column, column < columns, 0.0)[None, :]
        top, total = add_exp(top, total, x, 1)
    if CODES:
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = (row < rows)[:, None] & (column < columns)[None, :]
            place = row.to(tl.int64)[:, None] * stride + column[None, :]
            x = tl.load(scores_ptr + place, mask, 0.0).to(MATHS) / epsilon
            if HAS_G:
                x += tl.load(g_ptr + view * columns + column, column < columns, 0.0)[None, :]
            tl.store(
                out_ptr + (view * rows + row).to(tl.int64)[:, None] * columns + column[None, :],
                tl.exp(x - top[:, None]) / total[:, None], mask,
            )  # fmt: skip
    else:
        tl.store(out_ptr + view * rows + row, -(top + tl.log(total)), row < rows)


def column_potentials(scores: Tensor, epsilon: Tensor, iterations: int) -> Tensor:
    """g [V, K] after so many iterations over each view of scores [V, B, K] (views one behind the other, rows whole);
    epsilon scalar."""
    views, rows, columns = scores.shape
    dtype = maths_dtype(scores)
    g = torch.zeros(views, columns, dtype=dtype, device=scores.device)
    f = torch.empty(views, rows, dtype=dtype, device=scores.device)
    sweep = column_tile(scores)
    blocks = cdiv(columns, sweep.columns)
    least = 4 * sweep.rows
    span = cdiv(cdiv(rows, max(1, PROGRAMS // blocks)), least) * least
    parts = max(1, cdiv(rows, max(span, 1)))
    part = torch.empty(views, parts, columns, dtype=dtype, device=scores.device) if parts > 1 else g
    tile, width, warps = row_tile(scores)
    for i in range(iterations):
        if i > 0:
            launch(
                sinkhorn_rows_kernel, (cdiv(rows, tile), views), scores, epsilon, g, f, rows, columns,
                scores.stride(1), HAS_G=True, CODES=False, ROWS=tile, COLUMNS=width,
                MATHS=maths(scores), num_warps=warps,
            )  # fmt: skip
        launch(
            sinkhorn_columns_kernel, (blocks, parts, views), scores, epsilon, f, part, rows, columns,
            scores.stride(1), span, HAS_F=i > 0, ROWS=sweep.rows, COLUMNS=sweep.columns,
            MATHS=maths(scores), num_warps=sweep.warps,
        )  # fmt: skip
        if parts > 1:
            launch(
                sinkhorn_merge_kernel, (cdiv(columns, 128), views), part, g, parts, columns, COLUMNS=128,
                MATHS=maths(scores), num_warps=4,
            )  # fmt: skip
    return g


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """scores [B, K] -> codes [B, K] in the dtype of the maths."""
    scores = scores if scores.stride(1) == 1 else scores.contiguous()
    rows, columns = scores.shape
    out = torch.empty(rows, columns, dtype=maths_dtype(scores), device=scores.device)
    divisor = torch.full((), epsilon, dtype=out.dtype, device=out.device)
    g = column_potentials(scores[None], divisor, iterations)
    tile, width, warps = row_tile(scores)
    launch(
        sinkhorn_rows_kernel, (cdiv(rows, tile), 1), scores, divisor, g, out, rows, columns, scores.stride(0),
        HAS_G=True, CODES=True, ROWS=tile, COLUMNS=width, MATHS=maths(scores), num_warps=warps,
    )  # fmt: skip
    return out
