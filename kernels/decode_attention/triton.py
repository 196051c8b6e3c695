"""Triton kernels of decode attention and their launchers. README.md of this folder tells how the work is cut up."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.decode_attention.tiles import QUERIES, split, tile
from rmfast.kernels.jit import dot
from rmfast.kernels.launch import cdiv, launch, maths, next_power_of_2

SIZES = ["rows", "prompt_parts", "own_parts"]
MERGED = 8  # heads of queries in a program that merges


@triton.jit(do_not_specialize=["rows"])
def decode_append_kernel(
    k_ptr, v_ptr, own_ptr, layout_ptr, rows, k_row, k_head, v_row, v_head, own_plane, own_token,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's keys and values go to the end of its own range, unless that is empty."""
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(layout_ptr + 2 * rows + row), tl.load(layout_ptr + 3 * rows + row)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = (i < KV_HEADS * DIM) & (tl.zeros_like(i) + end > begin)
    to = own_ptr + (end - 1).to(tl.int64) * own_token + i
    k = tl.load(k_ptr + row * k_row + (i // DIM) * k_head + i % DIM, live)
    v = tl.load(v_ptr + row * v_row + (i // DIM) * v_head + i % DIM, live)
    tl.store(to, k, live)
    tl.store(to + own_plane, v, live)


@triton.jit(do_not_specialize=SIZES)
def decode_parts_kernel(
    q_ptr, prompt_ptr, own_ptr, acc_ptr, top_ptr, total_ptr, layout_ptr, rows, prompt_parts, own_parts,
    q_row, q_head, prompt_plane, prompt_token, own_plane, own_token,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    BLOCKS: tl.constexpr, PADDED: tl.constexpr,
    UNIT: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted values [parts, rows, HEADS(, DIM)] of one part of the keys, for M // PADDED rows.

    The first prompt_parts parts are of the rows' prompts, the others of their own tokens; such a program has one row.
    """
    kv_head = tl.program_id(1) // BLOCKS
    part = tl.program_id(2)
    lane = tl.arange(0, M)
    place, member = lane // PADDED, lane % PADDED + tl.program_id(1) % BLOCKS * PADDED
    row = tl.program_id(0) * (M // PADDED) + place
    live = (row < rows) & (member < GROUP)
    prompt = tl.load(layout_ptr + row, live, 0)
    prompt_end = tl.load(layout_ptr + rows + row, live, 0)
    own_begin = tl.load(layout_ptr + 2 * rows + row, live, 0)
    own_end = tl.load(layout_ptr + 3 * rows + row, live, 0)
    begin, end, first = prompt, tl.maximum(prompt, prompt_end), prompt
    plane, token, pool = prompt_plane, prompt_token, prompt_ptr
    split, splits, slot = part, prompt_parts, part
    if WINDOW:
        prompt_count = tl.maximum(prompt_end - prompt, 0)
        hidden = tl.maximum(prompt_count + tl.maximum(own_end - own_begin, 0) - WINDOW, 0)
        first = prompt + tl.minimum(hidden, prompt_count)
    if part >= prompt_parts:
        begin, end, first = own_begin, tl.maximum(own_begin, own_end), own_begin
        if WINDOW:
            first = own_begin + tl.maximum(hidden - prompt_count, 0)
        plane, token, pool = own_plane, own_token, own_ptr
        split, splits = (part - prompt_parts) % own_parts, own_parts
        slot = prompt_parts + split
        live = live & (place == (part - prompt_parts) // own_parts)
    head = kv_head * GROUP + member
    d = tl.arange(0, WIDTH)
    whole = live[:, None] & (d < DIM)[None, :]
    q = tl.load(q_ptr + row.to(tl.int64)[:, None] * q_row + head[:, None] * q_head + d[None, :], whole, 0.0)
    out = (slot.to(tl.int64) * rows + row) * HEADS + head
    tl.store(total_ptr + out, tl.zeros((M,), MATHS), live & (begin >= end))
    step_lane = tl.arange(0, N).to(tl.int64)
    k_tile = pool + kv_head.to(tl.int64) * DIM + step_lane[None, :] * token + d[:, None]
    v_tile = pool + plane + kv_head.to(tl.int64) * DIM + step_lane[:, None] * token + d[None, :]
    left = tl.where(live & (begin < end), 1, 0)
    while tl.max(left, 0) > 0:  # the ranges of the tile, each once for all of its rows
        chosen = tl.max(tl.where(left > 0, M - lane, 0), 0)  # the first lane that is left
        low, high = tl.max(tl.where(lane == M - chosen, begin, 0), 0), tl.max(tl.where(lane == M - chosen, end, 0), 0)
        alike = (left > 0) & (begin == low) & (end == high)
        if WINDOW:
            low = tl.minimum(tl.min(tl.where(alike, first, high), 0), high)
        steps = tl.cdiv(high - low, N)
        top = tl.full((M,), -1e30, MATHS)  # finite so that no inf - inf arises
        total = tl.zeros((M,), MATHS)
        acc = tl.zeros((M, WIDTH), MATHS)
        for step in range(steps * split // splits, steps * (split + 1) // splits):
            at = low + step * N
            here = tl.arange(0, N) < high - at
            k = tl.load(k_tile + at.to(tl.int64) * token, here[None, :] & (d < DIM)[:, None], 0.0)
            s = dot(q, k, tl.zeros((M, N), MATHS), UP)
            seen = alike[:, None] & here[None, :]
            if WINDOW:
                seen = seen & ((at - first)[:, None] + tl.arange(0, N)[None, :] >= 0)
            s = tl.where(seen, s, -float("inf"))
            new_top = tl.maximum(top, tl.max(s, 1) * UNIT)
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(s * UNIT - new_top[:, None])
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(v_tile + at.to(tl.int64) * token, here[:, None] & (d < DIM)[None, :], 0.0)
            if not UP:
                p = p.to(v.dtype)
            acc = dot(p, v, acc * shrink[:, None], UP)
            top = new_top
        tl.store(top_ptr + out, top, alike)
        tl.store(total_ptr + out, total, alike)
        tl.store(acc_ptr + out[:, None] * DIM + d[None, :], acc, alike[:, None] & (d < DIM)[None, :])
        left = tl.where(alike, 0, left)


@triton.jit(do_not_specialize=["rows", "parts"])
def decode_merge_kernel(
    acc_ptr, top_ptr, total_ptr, out_ptr, rows, parts,
    DIM: tl.constexpr, WIDTH: tl.constexpr, MATHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of DIM from their parts: a head of a query each; 0 where no part has a key."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, WIDTH)
    top = tl.full((BLOCK,), -1e30, MATHS)
    total = tl.zeros((BLOCK,), MATHS)
    acc = tl.zeros((BLOCK, WIDTH), MATHS)
    for part in range(parts):
        at = row + part * rows
        more = tl.load(total_ptr + at, row < rows, 0.0)
        used = more != 0  # NaN too; the rest of a part without keys was not written
        part_top = tl.load(top_ptr + at, used, -1e30)
        new_top = tl.maximum(top, part_top)
        shrink, share = tl.exp2(top - new_top), tl.exp2(part_top - new_top)
        values = tl.load(acc_ptr + at[:, None] * DIM + d[None, :], used[:, None] & (d < DIM)[None, :], 0.0)
        total = total * shrink + more * share
        acc = acc * shrink[:, None] + values * share[:, None]
        top = new_top
    out = acc / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(out_ptr + row[:, None] * DIM + d[None, :], out, (row < rows)[:, None] & (d < DIM)[None, :])


def append(own_kv: Tensor, layout: Tensor, k: Tensor, v: Tensor) -> None:
    """Write the current keys and values [R, Hkv, D] into the pool."""
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    rows, kv_heads, dim = k.shape
    block = min(next_power_of_2(kv_heads * dim), 1024)
    launch(
        decode_append_kernel, (rows, cdiv(kv_heads * dim, block)), k, v, own_kv, layout.contiguous(), rows,
        *k.stride()[:2], *v.stride()[:2], *own_kv.stride()[:2], KV_HEADS=kv_heads, DIM=dim, BLOCK=block, num_warps=4,
    )  # fmt: skip


def decode_attention(
    q: Tensor, prompt_kv: Tensor, own_kv: Tensor, layout: Tensor, scale: float, window: int | None
) -> Tensor:
    """[R, Hq, D] in q's dtype. The grid depends on shapes alone."""
    q, layout = q if q.stride(-1) == 1 else q.contiguous(), layout.contiguous()
    rows, heads, dim = q.shape
    kv_heads = own_kv.shape[2]
    t = tile(q)
    cut = split(rows, heads // kv_heads, kv_heads, prompt_kv.shape[1], own_kv.shape[1], t.keys)
    parts, dtype = cut.prompt_parts + cut.own_parts, maths_dtype(q)
    acc = torch.empty(parts, rows, heads, dim, dtype=dtype, device=q.device)
    top, total = (torch.empty(parts, rows, heads, dtype=dtype, device=q.device) for _ in range(2))
    out = torch.empty(rows, heads, dim, dtype=q.dtype, device=q.device)
    width = max(16, next_power_of_2(dim))
    launch(
        decode_parts_kernel, (cdiv(rows, cut.rows), kv_heads * cut.blocks, cut.prompt_parts + cut.rows * cut.own_parts),
        q, prompt_kv, own_kv, acc, top, total, layout, rows, cut.prompt_parts, cut.own_parts,
        *q.stride()[:2], *prompt_kv.stride()[:2], *own_kv.stride()[:2],
        HEADS=heads, GROUP=heads // kv_heads, DIM=dim, WIDTH=width, WINDOW=window or 0,
        BLOCKS=cut.blocks, PADDED=cut.heads,
        UNIT=scale / math.log(2), MATHS=maths(q), UP=INTERPRETED, M=QUERIES, N=t.keys,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    launch(
        decode_merge_kernel, (cdiv(rows * heads, MERGED),), acc, top, total, out, rows * heads, parts,
        DIM=dim, WIDTH=width, MATHS=maths(q), BLOCK=MERGED, num_warps=4,
    )  # fmt: skip
    return out
