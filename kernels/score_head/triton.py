"""Triton kernels of the score head and their launchers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import as_rows, cdiv, launch, maths, next_power_of_2, row_block, row_warps

# Programs of a backward, over rows and columns. The weights' gradients are summed within each program, then over those
# of the same columns, in fixed order.
PROGRAMS = 1024
TILE = 8192  # rows x heads x columns of a backward's step


@triton.jit(do_not_specialize=["rows"])
def score_head_fwd_kernel(
    hidden_ptr, norm_ptr, head_ptr, scores_ptr, rstd_ptr, rows, width, hidden_stride,
    HEADS: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    column = tl.arange(0, COLUMNS)  # [C]
    inside = column < width
    mask = (row < rows)[:, None] & inside[None, :]
    x = tl.load(hidden_ptr + row[:, None] * hidden_stride + column[None, :], mask, 0.0).to(MATHS)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / width + EPS)
    tl.store(rstd_ptr + row, rstd, row < rows)
    x = x * rstd[:, None] * tl.load(norm_ptr + column, inside, 0.0).to(MATHS)[None, :]
    for head in range(HEADS):
        weight = tl.load(head_ptr + head * width + column, inside, 0.0).to(MATHS)
        tl.store(scores_ptr + row * HEADS + head, tl.sum(x * weight[None, :], 1), row < rows)


@triton.jit(do_not_specialize=["rows"])
def score_head_bwd_kernel(
    grad_ptr, scores_ptr, hidden_ptr, norm_ptr, head_ptr, rstd_ptr, grad_hidden_ptr, partial_ptr, rows, width,
    hidden_stride,
    HEADS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # [C]
    head = tl.arange(0, BLOCK)  # [M]
    inside = column < width
    held = (head < HEADS)[:, None] & inside[None, :]
    weight = tl.load(head_ptr + head[:, None] * width + column[None, :], held, 0.0).to(MATHS)
    weight *= tl.load(norm_ptr + column, inside, 0.0).to(MATHS)[None, :]  # [M, C]
    total = tl.zeros((BLOCK, COLUMNS), MATHS)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
        mask = (row < rows)[:, None] & inside[None, :]
        scored = (row < rows)[:, None] & (head < HEADS)[None, :]
        rstd = tl.load(rstd_ptr + row, row < rows, 0.0)
        x = tl.load(hidden_ptr + row[:, None] * hidden_stride + column[None, :], mask, 0.0).to(MATHS) * rstd[:, None]
        grad = tl.load(grad_ptr + row[:, None] * HEADS + head[None, :], scored, 0.0).to(MATHS)  # [R, M]
        scores = tl.load(scores_ptr + row[:, None] * HEADS + head[None, :], scored, 0.0)
        total += tl.sum(grad[:, :, None] * x[:, None, :], 0)
        grad_x = tl.sum(grad[:, :, None] * weight[None, :, :], 1) - x * (tl.sum(grad * scores, 1) / width)[:, None]
        tl.store(grad_hidden_ptr + row[:, None] * width + column[None, :], grad_x * rstd[:, None], mask)
    out = partial_ptr + (program.to(tl.int64) * HEADS + head)[:, None] * width + column[None, :]
    tl.store(out, total, held)


def score_head_fwd(hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """hidden [S, d], norm_weight [d], head_weight [M, d] -> scores [S, M], rstd [S]."""
    x = as_rows(hidden)
    (count, width), heads = x.shape, len(head_weight)
    tensors = (hidden, norm_weight, head_weight)
    dtype = maths_dtype(*tensors)
    scores = torch.empty(count, heads, dtype=dtype, device=hidden.device)
    rstd = torch.empty(count, dtype=dtype, device=hidden.device)
    tile, columns = row_block(width)
    launch(
        score_head_fwd_kernel, (cdiv(count, tile),), x, norm_weight.contiguous(), head_weight.contiguous(),
        scores, rstd, count, width, x.stride(0),
        HEADS=heads, EPS=eps, ROWS=tile, COLUMNS=columns, MATHS=maths(*tensors), num_warps=row_warps(tile * columns),
    )  # fmt: skip
    return scores, rstd


def score_head_bwd(
    grad: Tensor, scores: Tensor, hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, norm_weight and head_weight; see README.md."""
    x, head = as_rows(hidden), head_weight.contiguous()
    (count, width), heads = x.shape, len(head)
    tensors = (hidden, norm_weight, head_weight)
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    block = next_power_of_2(heads)
    columns = min(next_power_of_2(width), 256 if block <= 4 else 128)
    # With 16 rows the compiler would make the kernel's sum over heads a matrix product, and that in tf32.
    tile = min(8, max(1, TILE // (block * columns)))
    across = cdiv(width, columns)
    programs = min(max(1, PROGRAMS // across), cdiv(count, tile))
    partial = torch.empty(programs, heads, width, dtype=rstd.dtype, device=hidden.device)
    launch(
        score_head_bwd_kernel, (programs, across), grad.contiguous(), scores.contiguous(), x,
        norm_weight.contiguous(), head, rstd, grad_hidden, partial, count, width, x.stride(0),
        HEADS=heads, BLOCK=block, ROWS=tile, COLUMNS=columns, MATHS=maths(*tensors), num_warps=4,
    )  # fmt: skip
    total = partial.sum(0)
    grad_norm = (total * head).sum(0).to(norm_weight.dtype)
    return grad_hidden, grad_norm, (total * norm_weight).to(head_weight.dtype)
