"""Triton kernels of InfoNCE and their launchers.

A similarity in units of log 2 is s_ij = (q_i . k_j) a_i b_j with a_i = log2(e) / (temperature |q_i|), b_j = 1 / |k_j|.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.info_nce.tiles import Blocks, blocks
from rmfast.kernels.jit import dot
from rmfast.kernels.launch import as_rows, cdiv, launch, maths
from rmfast.kernels.linear_log_prob.products import add_product, wide_product
from rmfast.kernels.normalize import lengths, normalize_bwd, sweep_tile

PROGRAMS = 256  # few rows share them by splitting the columns; the parts are added in fixed order
RESIDENT = 128  # widest vectors of which a tile stays in a program for the whole backward
CHUNK_BYTES = 1 << 28  # of gradients of similarities at a time, for wider ones


@triton.jit
def _tile(
    a_ptr, b_ptr, a_row, b_row, a_rows, b_rows, width, a_stride, b_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """Inner products [BLOCK_M, BLOCK_N] of rows of a and rows of b; 0 for rows that are not there."""
    column = tl.arange(0, BLOCK_D)
    a_ptrs = a_ptr + a_row.to(tl.int64)[:, None] * a_stride + column[None, :]
    b_ptrs = b_ptr + b_row.to(tl.int64)[:, None] * b_stride + column[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), MATHS)
    for start in range(0, width, BLOCK_D):
        inside = (start + column < width)[None, :]
        a = tl.load(a_ptrs + start, (a_row < a_rows)[:, None] & inside, 0.0)
        b = tl.load(b_ptrs + start, (b_row < b_rows)[:, None] & inside, 0.0)
        acc = dot(a, tl.trans(b), acc, UP)
    return acc


@triton.jit(do_not_specialize=["rows", "columns"])
def info_nce_fwd_kernel(
    q_ptr, k_ptr, q_scale_ptr, k_scale_ptr, part_ptr, rows, columns, width, q_stride, k_stride, span,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tl.program_id(1) * span
    q_scale = tl.load(q_scale_ptr + row, row < rows, 0.0)
    top = tl.full((BLOCK_M,), -1e30, MATHS)
    total = tl.zeros((BLOCK_M,), MATHS)
    for start in range(first, tl.minimum(first + span, columns), BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        s = _tile(
            q_ptr, k_ptr, row, column, rows, columns, width, q_stride, k_stride, BLOCK_M, BLOCK_N, BLOCK_D, UP, MATHS
        )
        s *= q_scale[:, None] * tl.load(k_scale_ptr + column, column < columns, 0.0)[None, :]
        s = tl.where((column < columns)[None, :], s, float("-inf"))
        old, top = top, tl.maximum(top, tl.max(s, 1))
        total = total * tl.exp2(old - top) + tl.sum(tl.exp2(s - top[:, None]), 1)
    tl.store(part_ptr + tl.program_id(1) * rows + row, top + tl.log2(total), row < rows)


@triton.jit(do_not_specialize=["rows", "columns", "parts"])
def info_nce_loss_kernel(
    q_ptr, k_ptr, q_scale_ptr, k_scale_ptr, positive_ptr, part_ptr, lse_ptr, loss_ptr, rows, columns, width,
    q_stride, k_stride, parts,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """Queries' log-sum-exps from their parts, and their losses."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    positive = tl.load(positive_ptr + row, row < rows, -1)
    valid = (positive >= 0) & (positive < columns)  # another key reads nothing and gives NaN
    products = tl.zeros((ROWS, COLUMNS), MATHS)
    for start in range(0, width, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (column < width)[None, :]
        q = tl.load(q_ptr + row[:, None] * q_stride + column[None, :], mask, 0.0).to(MATHS)
        products += q * tl.load(k_ptr + positive[:, None] * k_stride + column[None, :], mask, 0.0).to(MATHS)
    k_scale = tl.load(k_scale_ptr + positive, valid, float("nan"))
    chosen = tl.sum(products, 1) * (tl.load(q_scale_ptr + row, row < rows, 0.0) * k_scale)
    part = tl.arange(0, PARTS)
    there = (part < parts)[:, None] & (row < rows)[None, :]
    lse = tl.load(part_ptr + part[:, None] * rows + row[None, :], there, -1e30)
    top = tl.max(lse, 0)
    lse = top + tl.log2(tl.sum(tl.exp2(lse - top[None, :]), 0))
    tl.store(lse_ptr + row, lse, row < rows)
    tl.store(loss_ptr + row, (lse - chosen) * 0.6931471805599453, row < rows)


@triton.jit(do_not_specialize=["owns", "others"])
def info_nce_bwd_kernel(
    own_ptr, other_ptr, own_scale_ptr, other_scale_ptr, positive_ptr, lse_ptr, part_ptr, owns, others, width,
    own_stride, other_stride, span,
    KEYS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr,
    MATHS: tl.constexpr,
):  # fmt: skip
    """Gradients of some rows: the queries, or with KEYS the keys. Sums over the others of one split."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    column = tl.arange(0, BLOCK_D)
    inside = (column < width)[None, :]
    mask = (row < owns)[:, None] & inside
    vectors = tl.load(own_ptr + row.to(tl.int64)[:, None] * own_stride + column[None, :], mask, 0.0)
    own_scale = tl.load(own_scale_ptr + row, row < owns, 0.0)
    if not KEYS:
        lse = tl.load(lse_ptr + row, row < owns, 0.0)
        positive = tl.load(positive_ptr + row, row < owns, -1)
    grad = tl.zeros((BLOCK_M, BLOCK_D), MATHS)
    for start in range(split * span, tl.minimum(split * span + span, others), BLOCK_N):
        other = start + tl.arange(0, BLOCK_N)
        there = other < others
        theirs = tl.load(
            other_ptr + other.to(tl.int64)[:, None] * other_stride + column[None, :], there[:, None] & inside, 0.0
        )
        scale = own_scale[:, None] * tl.load(other_scale_ptr + other, there, 0.0)[None, :]
        s = dot(vectors, tl.trans(theirs), tl.zeros((BLOCK_M, BLOCK_N), MATHS), UP) * scale
        if KEYS:
            s -= tl.load(lse_ptr + other, there, 0.0)[None, :]
            hit = tl.load(positive_ptr + other, there, -1)[None, :] == row[:, None]
        else:
            s -= lse[:, None]
            hit = positive[:, None] == other[None, :]
        p = tl.exp2(tl.where(there[None, :], s, float("-inf")))
        grad = dot(((p - tl.where(hit, 1.0, 0.0)) * scale).to(theirs.dtype), theirs, grad, UP)
    out = (split * owns + row).to(tl.int64)
    tl.store(part_ptr + out[:, None] * width + column[None, :], grad, mask)


@triton.jit(do_not_specialize=["rows"])
def info_nce_grad_kernel(
    q_ptr, k_ptr, q_scale_ptr, k_scale_ptr, positive_ptr, lse_ptr, grad_ptr, rows, columns, width, q_stride, k_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """Gradients [rows, columns] of the inner products q_i . k_j."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = _tile(q_ptr, k_ptr, row, column, rows, columns, width, q_stride, k_stride, BLOCK_M, BLOCK_N, BLOCK_D, UP, MATHS)
    scale = tl.load(q_scale_ptr + row, row < rows, 0.0)[:, None]
    scale *= tl.load(k_scale_ptr + column, column < columns, 0.0)[None, :]
    p = tl.exp2(s * scale - tl.load(lse_ptr + row, row < rows, 0.0)[:, None])
    hit = tl.load(positive_ptr + row, row < rows, -1)[:, None] == column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    place = grad_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(place, (p - tl.where(hit, 1.0, 0.0)) * scale, mask)


def _splits(rows: int, columns: int, tiles: Blocks) -> tuple[int, int]:
    """Number of parts into which the columns of all rows are split, and their width (whole tiles)."""
    wanted = max(1, PROGRAMS // cdiv(rows, tiles.m))
    span = cdiv(cdiv(columns, wanted), tiles.n) * tiles.n
    return cdiv(columns, span), span


def _scales(query_length: Tensor, key_length: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (math.log2(math.e) / temperature) / query_length, 1 / key_length


def info_nce_fwd(
    queries: Tensor, keys: Tensor, positive: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the queries' losses; log2-sum-exp2 of each query's similarities; lengths of queries and of keys."""
    q, k, positive = as_rows(queries), as_rows(keys), positive.contiguous()
    (count, width), columns = q.shape, len(k)
    query_length, key_length = lengths(q), lengths(k)
    q_scale, k_scale = _scales(query_length, key_length, temperature)
    tiles = blocks("forward", q)
    parts, span = _splits(count, columns, tiles)
    part = torch.empty(parts, count, dtype=maths_dtype(q), device=q.device)
    lse, loss = torch.empty_like(query_length), torch.empty_like(query_length)
    launch(
        info_nce_fwd_kernel, (cdiv(count, tiles.m), parts), q, k, q_scale, k_scale, part, count, columns, width,
        q.stride(0), k.stride(0), span, BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_D=tiles.d,
        UP=INTERPRETED, MATHS=maths(q), **tiles.options,
    )  # fmt: skip
    tile, block = sweep_tile(width)
    launch(
        info_nce_loss_kernel, (cdiv(count, tile),), q, k, q_scale, k_scale, positive, part, lse, loss,
        count, columns, width, q.stride(0), k.stride(0), parts, PARTS=PROGRAMS, ROWS=tile,
        COLUMNS=block, MATHS=maths(q), num_warps=4,
    )  # fmt: skip
    return loss.sum(), lse, query_length, key_length


def _resident(
    q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, positive: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the vectors, up to factors that only their rows know, tile by tile."""
    width = q.shape[1]
    tiles = blocks("resident", q)
    grads = []
    for vectors, other, own_scale, other_scale in ((q, k, q_scale, k_scale), (k, q, k_scale, q_scale)):
        parts, span = _splits(len(vectors), len(other), tiles)
        part = torch.empty(parts, len(vectors), width, dtype=lse.dtype, device=q.device)
        launch(
            info_nce_bwd_kernel, (cdiv(len(vectors), tiles.m), parts), vectors, other, own_scale, other_scale, positive,
            lse, part, len(vectors), len(other), width, vectors.stride(0), other.stride(0), span, KEYS=vectors is k,
            BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_D=tiles.d, UP=INTERPRETED, MATHS=maths(q), **tiles.options,
        )  # fmt: skip
        grads.append(part.sum(0) if parts > 1 else part[0])
    return grads[0], grads[1]


def _chunked(
    q: Tensor, k: Tensor, q_scale: Tensor, k_scale: Tensor, positive: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """The same from chunks of the gradient of q @ k.T and the library's products."""
    (count, width), columns = q.shape, len(k)
    tiles = blocks("gradient", q)
    step = max(1, CHUNK_BYTES // (columns * q.element_size()))
    step = min(count, max(tiles.m, step // tiles.m * tiles.m))
    chunk = torch.empty(step, columns, dtype=q.dtype, device=q.device)
    grad_q = torch.empty(count, width, dtype=lse.dtype, device=q.device)
    grad_k = torch.zeros(columns, width, dtype=lse.dtype, device=q.device)
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        grad, queries = chunk[: rows.stop - start], q[rows]
        launch(
            info_nce_grad_kernel, (cdiv(len(queries), tiles.m), cdiv(columns, tiles.n)), queries, k,
            q_scale[rows], k_scale, positive[rows], lse[rows], grad, len(queries), columns, width, q.stride(0),
            k.stride(0), BLOCK_M=tiles.m, BLOCK_N=tiles.n, BLOCK_D=tiles.d, UP=INTERPRETED, MATHS=maths(q),
            **tiles.options,
        )  # fmt: skip
        grad_q[rows] = wide_product(grad, k, lse.dtype)
        add_product(grad_k, grad.T, queries)
    return grad_q, grad_k


def info_nce_bwd(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    lse: Tensor,
    query_length: Tensor,
    key_length: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys; `grad` is that of the sum."""
    q, k = as_rows(queries), as_rows(keys)
    scales = _scales(query_length, key_length, temperature)
    way = _resident if q.shape[1] <= RESIDENT else _chunked
    grad_q, grad_k = way(q, k, *scales, positive.contiguous(), lse)
    scale = grad * math.log(2)  # the gradients above are of exponents of 2
    return (
        normalize_bwd(grad_q, scale, q, query_length, divided=True),
        normalize_bwd(grad_k, scale, k, key_length, divided=True),
    )
