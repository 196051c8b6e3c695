"""Triton kernels of shared-prefix attention and their launchers. The maths stands in this folder's README.md.

A program begins with all groups of its tile at once and goes through them one by one only where the result is not
finite (`next_group`). `block += current < ALL` never adds anything, which the compiler does not know: it would else
compute before the loop over keys or queries all that comes after it, and hold it in registers all the while.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.jit import dot, tanh
from rmfast.kernels.launch import cdiv, launch, maths, next_power_of_2
from rmfast.kernels.prefix_attention.intervals import (
    ALL,
    FAR,
    is_finite,
    key_queries,
    key_step,
    key_tile,
    next_group,
    query_keys,
    query_tile,
    span,
)
from rmfast.kernels.prefix_attention.tiles import Tile, tile

# No load's width depends on them: specialised, a pack whose size 16 divides would compile every kernel once more.
SIZES = ["queries", "tokens"]


@triton.jit
def capped(s, scale, SOFTCAP: tl.constexpr):
    """Products of q and k as the maths goes on with them: `UNIT` times that is a base-2 exponent."""
    return tanh(s * (scale / SOFTCAP)) if SOFTCAP > 0 else s


@triton.jit(do_not_specialize=SIZES)
def prefix_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, layout_ptr, rows_ptr, queries, tokens,
    scale: tl.constexpr, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, WIDTH)
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the last queries see the most keys: they start first
    current = tl.full((), ALL, tl.int32)
    while current < FAR:
        index, row, group, prefix_end, segment, live = query_tile(
            layout_ptr, rows_ptr, block, current, queries, tokens, ROWS, M
        )
        prefix, prefix_count, suffix, suffix_count = query_keys(row, group, prefix_end, segment, live, WINDOW)
        low, high = span(prefix, prefix_count)
        suffix_low, suffix_high = span(suffix, suffix_count)
        steps = tl.cdiv(high - low, N)
        offset = index.to(tl.int64)
        whole = live[:, None] & (d < DIM)[None, :]
        q = tl.load(q_ptr + offset[:, None] * q_token + head * q_head + d[None, :], whole, 0.0)
        lane = tl.arange(0, N).to(tl.int64)
        k_tile = k_ptr + (head // GROUP) * k_head + lane[None, :] * k_token + d[:, None]
        v_tile = v_ptr + (head // GROUP) * v_head + lane[:, None] * v_token + d[None, :]
        top = tl.full((M,), -1e30, MATHS)  # running maximum, finite so that no inf - inf arises
        total = tl.zeros((M,), MATHS)
        acc = tl.zeros((M, WIDTH), MATHS)
        for step in range(0, steps + tl.cdiv(suffix_high - suffix_low, N)):
            begin, here, seen = key_step(
                step, steps, low, high, suffix_low, suffix_high, prefix, prefix_count, suffix, suffix_count, N
            )
            k = tl.load(k_tile + begin * k_token, here[None, :] & (d < DIM)[:, None], 0.0)
            s = capped(dot(q, k, tl.zeros((M, N), MATHS), UP), scale, SOFTCAP)
            s = tl.where(seen, s, -float("inf"))
            new_top = tl.maximum(top, tl.max(s, 1) * UNIT)
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(s * UNIT - new_top[:, None])
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(v_tile + begin * v_token, here[:, None] & (d < DIM)[None, :], 0.0)
            if not UP:
                p = p.to(v.dtype)
            acc = dot(p, v, acc * shrink[:, None], UP)
            top = new_top
        block += (current < ALL).to(tl.int32)
        index, _, group, _, _, live = query_tile(layout_ptr, rows_ptr, block, current, queries, tokens, ROWS, M)
        whole = live[:, None] & (d < DIM)[None, :]
        out = index.to(tl.int64)[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
        total = tl.where(live, total, 1.0)
        tl.store(out_ptr + out, acc / total[:, None], whole)
        tl.store(lse_ptr + head * queries + index, top + tl.log2(total), live)
        current = next_group(current, group, is_finite(acc))


@triton.jit(do_not_specialize=SIZES)
def prefix_attention_dq_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr, dq_ptr, layout_ptr, rows_ptr, queries, tokens,
    scale: tl.constexpr, g_token, g_head, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, WIDTH)
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    current = tl.full((), ALL, tl.int32)
    while current < FAR:
        index, row, group, prefix_end, segment, live = query_tile(
            layout_ptr, rows_ptr, block, current, queries, tokens, ROWS, M
        )
        prefix, prefix_count, suffix, suffix_count = query_keys(row, group, prefix_end, segment, live, WINDOW)
        low, high = span(prefix, prefix_count)
        suffix_low, suffix_high = span(suffix, suffix_count)
        steps = tl.cdiv(high - low, N)
        offset = index.to(tl.int64)
        whole = live[:, None] & (d < DIM)[None, :]
        out_at = offset[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
        q = tl.load(q_ptr + offset[:, None] * q_token + head * q_head + d[None, :], whole, 0.0)
        grad = tl.load(grad_ptr + offset[:, None] * g_token + head * g_head + d[None, :], whole, 0.0)
        delta = tl.sum(tl.load(out_ptr + out_at, whole, 0.0).to(MATHS) * grad.to(MATHS), 1)
        tl.store(delta_ptr + head * queries + index, delta, live)
        lse = tl.load(lse_ptr + head * queries + index, live, 0.0)
        lane = tl.arange(0, N).to(tl.int64)
        k_tile = k_ptr + (head // GROUP) * k_head + lane[None, :] * k_token + d[:, None]
        v_tile = v_ptr + (head // GROUP) * v_head + lane[None, :] * v_token + d[:, None]
        dq = tl.zeros((M, WIDTH), MATHS)
        for step in range(0, steps + tl.cdiv(suffix_high - suffix_low, N)):
            begin, here, seen = key_step(
                step, steps, low, high, suffix_low, suffix_high, prefix, prefix_count, suffix, suffix_count, N
            )
            k = tl.load(k_tile + begin * k_token, here[None, :] & (d < DIM)[:, None], 0.0)
            s = capped(dot(q, k, tl.zeros((M, N), MATHS), UP), scale, SOFTCAP)
            p = tl.where(seen, tl.exp2(s * UNIT - lse[:, None]), 0.0)
            v = tl.load(v_tile + begin * v_token, here[None, :] & (d < DIM)[:, None], 0.0)
            ds = p * (dot(grad, v, tl.zeros((M, N), MATHS), UP) - delta[:, None])
            if SOFTCAP > 0:
                ds *= 1.0 - s * s
            if not UP:
                ds = ds.to(k.dtype)
            dq = dot(ds, tl.trans(k), dq, UP)
        block += (current < ALL).to(tl.int32)
        index, _, group, _, _, live = query_tile(layout_ptr, rows_ptr, block, current, queries, tokens, ROWS, M)
        whole = live[:, None] & (d < DIM)[None, :]
        out_at = index.to(tl.int64)[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
        tl.store(dq_ptr + out_at, dq * scale, whole)
        current = next_group(current, group, is_finite(dq))


@triton.jit(do_not_specialize=SIZES)
def prefix_attention_dkv_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, layout_ptr, rows_ptr, span_ptr, queries, tokens,
    scale: tl.constexpr, g_token, g_head, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, UNIT: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, WIDTH)
    block = tl.program_id(0)  # the first keys are seen by the most queries
    current = tl.full((), ALL, tl.int32)
    while current < FAR:
        key, group, here = key_tile(layout_ptr, block, current, tokens, N)
        count, plain = key_queries(layout_ptr, key, here, tokens, WINDOW)
        low, high = span(key, count)
        first_row, last_row = low, high
        if ROWS:  # which of the given rows lie there, of all groups
            low = tl.load(span_ptr + 2 * block)
            high = tl.load(span_ptr + 2 * block + 1)
        at = key.to(tl.int64)
        whole = here[:, None] & (d < DIM)[None, :]
        k = tl.load(k_ptr + at[:, None] * k_token + kv_head * k_head + d[None, :], whole, 0.0)
        v = tl.load(v_ptr + at[:, None] * v_token + kv_head * v_head + d[None, :], whole, 0.0)
        lane = tl.arange(0, M)
        first = low + lane.to(tl.int64)  # queries of the first step; others are so many steps and heads on
        q_tile = q_ptr + kv_head * GROUP * q_head + first[:, None] * q_token + d[None, :]
        grad_tile = grad_ptr + kv_head * GROUP * g_head + first[:, None] * g_token + d[None, :]
        lse_tile = lse_ptr + kv_head * GROUP * queries + first
        delta_tile = delta_ptr + kv_head * GROUP * queries + first
        dk = tl.zeros((N, WIDTH), MATHS)
        dv = tl.zeros((N, WIDTH), MATHS)
        # All query heads of this key head, all responses of a prompt: summed here, in one order, without atomics.
        for turn in range(0, tl.cdiv(high - low, M) * GROUP):
            member, begin = tl.cast(turn % GROUP, tl.uint32).to(tl.int64), turn // GROUP * M
            far = tl.cast(begin, tl.uint32).to(tl.int64)
            live = lane < high - low - begin
            if ROWS:
                row = tl.load(rows_ptr + low + begin + lane, live, -1).to(tl.int32)
                live = (row >= first_row) & (row < last_row)
                distance = row[None, :] - key[:, None]
            else:
                row = low + begin + lane
                distance = (low - key + begin)[:, None] + lane[None, :]
            seen = distance.to(tl.uint32) < count[:, None].to(tl.uint32)
            loaded = live[:, None] & (d < DIM)[None, :]
            q = tl.load(q_tile + (far * q_token + member * q_head), loaded, 0.0)
            grad = tl.load(grad_tile + (far * g_token + member * g_head), loaded, 0.0)
            lse = tl.load(lse_tile + (member * queries + far), live, 0.0)
            delta = tl.load(delta_tile + (member * queries + far), live, 0.0)
            if WINDOW:
                prefix_end = tl.load(layout_ptr + tokens + row, live, 0)
                segment = tl.load(layout_ptr + 2 * tokens + row, live, 0)
                position = row - tl.where(row >= prefix_end, segment - prefix_end, 0)
                seen &= plain[:, None] | (position[None, :] - key[:, None] < WINDOW)
            s = capped(dot(k, tl.trans(q), tl.zeros((N, M), MATHS), UP), scale, SOFTCAP)
            p = tl.where(seen, tl.exp2(s * UNIT - lse[None, :]), 0.0)
            ds = p * (dot(v, tl.trans(grad), tl.zeros((N, M), MATHS), UP) - delta[None, :])
            if SOFTCAP > 0:
                ds *= 1.0 - s * s
            if not UP:
                p = p.to(grad.dtype)
                ds = ds.to(q.dtype)
            dv = dot(p, grad, dv, UP)
            dk = dot(ds, q, dk, UP)
        block += (current < ALL).to(tl.int32)
        key, group, here = key_tile(layout_ptr, block, current, tokens, N)
        whole = here[:, None] & (d < DIM)[None, :]
        out = key.to(tl.int64)[:, None] * (tl.num_programs(1) * DIM) + kv_head * DIM + d[None, :]
        tl.store(dk_ptr + out, dk * scale, whole)
        tl.store(dv_ptr + out, dv, whole)
        current = next_group(current, group, is_finite(dk + dv))


def _options(
    q: Tensor, k: Tensor, rows: Tensor | None, scale: float, window: int | None, softcap: float | None, t: Tile
) -> dict[str, object]:
    return {
        "HEADS": q.shape[1],
        "GROUP": q.shape[1] // k.shape[1],
        "DIM": q.shape[2],
        "WIDTH": max(16, next_power_of_2(q.shape[2])),
        "ROWS": rows is not None,
        "WINDOW": window or 0,
        "SOFTCAP": float(softcap or 0),
        "UNIT": (softcap or scale) / math.log(2),
        "MATHS": maths(q),
        "UP": INTERPRETED,  # the interpreter multiplies bf16 wrongly
        "M": t.queries,
        "N": t.keys,
        "num_warps": t.warps,
        "num_stages": t.stages,
        **({} if t.registers is None else {"maxnreg": t.registers}),
    }


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _spans(layout: Tensor, rows: Tensor, keys: int, window: int | None) -> Tensor:
    """int32 [tiles, 2]: the range of `rows` (ascending) that may see a key of each tile of `keys` keys."""
    tokens = layout.shape[1]
    tiles = cdiv(tokens, keys)
    last = torch.zeros(tiles * keys, dtype=torch.int64, device=layout.device)
    last[:tokens] = layout[3]
    if window is not None:  # as `key_queries` has it
        key = torch.arange(tokens, device=layout.device)
        plain = (key >= layout[1]) | (layout[1] - key >= window)
        last[:tokens] = torch.where(plain, torch.minimum(last[:tokens], key + window), last[:tokens])
    edges = torch.stack((torch.arange(tiles, device=rows.device) * keys, last.view(tiles, keys).amax(1)), 1)
    return torch.searchsorted(rows.long().contiguous(), edges, out_int32=True)


def prefix_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    rows: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Output [S, Hq, D] and log2-sum-exp2 of the logits [Hq, S]. `rows` ascending, or None for all tokens."""
    q, k, v, layout = _unit(q), _unit(k), _unit(v), layout.contiguous()
    queries, heads, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(heads, queries, dtype=maths_dtype(q), device=q.device)
    t = tile("fwd", q, rows is not None, window is not None or softcap is not None)
    launch(
        prefix_attention_fwd_kernel, (cdiv(queries, t.queries), heads),
        q, k, v, out, lse, layout, layout if rows is None else rows, queries, layout.shape[1], scale,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        **_options(q, k, rows, scale, window, softcap, t),
    )  # fmt: skip
    return out, lse


def prefix_attention_bwd(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Tensor,
    rows: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous."""
    grad, q, k, v, layout = _unit(grad), _unit(q), _unit(k), _unit(v), layout.contiguous()
    queries, heads, _ = q.shape
    tokens, kv_heads, _ = k.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    row_list = layout if rows is None else rows
    strides = (*grad.stride()[:2], *q.stride()[:2], *k.stride()[:2], *v.stride()[:2])
    t = tile("dq", q, rows is not None, window is not None or softcap is not None)
    launch(
        prefix_attention_dq_kernel, (cdiv(queries, t.queries), heads),
        grad, q, k, v, out, lse, delta, dq, layout, row_list, queries, tokens, scale, *strides,
        **_options(q, k, rows, scale, window, softcap, t),
    )  # fmt: skip
    t = tile("dkv", q, rows is not None, window is not None or softcap is not None)
    spans = layout if rows is None else _spans(layout, rows, t.keys, window)
    launch(
        prefix_attention_dkv_kernel, (cdiv(tokens, t.keys), kv_heads),
        grad, q, k, v, lse, delta, dk, dv, layout, row_list, spans, queries, tokens, scale, *strides,
        **_options(q, k, rows, scale, window, softcap, t),
    )  # fmt: skip
    return dq, dk, dv
