"""Triton kernels of shared-prefix attention and their launchers. The maths stands in this folder's README.md."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.attention.tiles import Tile, tile
from rmfast.kernels.common import INTERPRETED, maths_dtype
from rmfast.kernels.jit import dot, tanh
from rmfast.kernels.launch import launch, maths

FAR = tl.constexpr(2**31 - 1)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def query_rows(layout_ptr, rows_ptr, index, live, tokens, ROWS: tl.constexpr):
    """Token, group start, prefix end and segment start of the queries `index`; queries that are none see nothing."""
    row = tl.load(rows_ptr + index, live, -1).to(tl.int32) if ROWS else tl.where(live, index, -1)
    start = tl.load(layout_ptr + row, live, FAR)
    prefix_end = tl.load(layout_ptr + tokens + row, live, 0)
    segment = tl.load(layout_ptr + 2 * tokens + row, live, FAR)
    return row, start, prefix_end, segment


@triton.jit
def visible(row, start, prefix_end, segment, key, WINDOW: tl.constexpr):
    """[M, N]: which keys the queries see. Positions restart in every response, so the window leaves out what lies
    between the prefix and the query's own segment."""
    in_prefix = key[None, :] < prefix_end[:, None]
    mask = (key[None, :] >= start[:, None]) & (key[None, :] <= row[:, None])
    mask &= in_prefix | (key[None, :] >= segment[:, None])
    if WINDOW:
        gap = tl.where(row >= prefix_end, segment - prefix_end, 0)
        mask &= row[:, None] - key[None, :] - tl.where(in_prefix, gap[:, None], 0) < WINDOW
    return mask


@triton.jit
def key_ranges(row, start, prefix_end, segment, WINDOW: tl.constexpr):
    """(first, last) of the prefix keys that any of the queries sees, then of the later keys of their own segments."""
    responds = row >= prefix_end
    own = segment
    if WINDOW:
        gap = tl.where(responds, segment - prefix_end, 0)
        start = tl.where(row >= 0, tl.maximum(start, row - gap - (WINDOW - 1)), start)
        own = tl.maximum(segment, row - (WINDOW - 1))
    prefix_last = tl.max(tl.minimum(prefix_end, row + 1), 0)
    own_first = tl.min(tl.where(responds & (row >= 0), own, FAR), 0)
    own_last = tl.max(tl.where(responds, row + 1, 0), 0)
    # Not even an empty range may begin at FAR: the pipeliner asks whether the second iteration begins before the end of
    # the range, and FAR + N wraps around to a negative number: keys would be loaded from wild addresses.
    return tl.min(start, 0), prefix_last, tl.minimum(tl.maximum(own_first, prefix_last), own_last), own_last


@triton.jit
def logits(q, k, scale, SOFTCAP: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr):
    """[M, N] from q [M, D] and k [D, N]: natural units, capped if asked."""
    s = dot(q, k, tl.zeros((q.shape[0], k.shape[1]), MATHS), UP) * scale
    if SOFTCAP > 0:
        s = SOFTCAP * tanh(s / SOFTCAP)
    return s


@triton.jit
def prefix_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, layout_ptr, rows_ptr, queries, tokens,
    scale: tl.constexpr, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * M + tl.arange(0, M)
    live = index < queries
    d = tl.arange(0, WIDTH)
    offset = index.to(tl.int64)
    q = tl.load(q_ptr + offset[:, None] * q_token + head * q_head + d[None, :], live[:, None] & (d < DIM)[None, :], 0.0)
    row, start, prefix_end, segment = query_rows(layout_ptr, rows_ptr, index, live, tokens, ROWS)
    first, last, own_first, own_last = key_ranges(row, start, prefix_end, segment, WINDOW)
    k_base = k_ptr + (head // GROUP) * k_head
    v_base = v_ptr + (head // GROUP) * v_head
    top = tl.full((M,), -1e30, MATHS)  # running maximum, finite so that no inf - inf arises
    total = tl.zeros((M,), MATHS)
    acc = tl.zeros((M, WIDTH), MATHS)
    for part in tl.static_range(2):
        low = first if part == 0 else own_first
        high = last if part == 0 else own_last
        for begin in range(low, high, N):
            key = begin + tl.arange(0, N)
            here = key < high
            at = key.to(tl.int64)
            k = tl.load(k_base + at[None, :] * k_token + d[:, None], here[None, :] & (d < DIM)[:, None], 0.0)
            s = logits(q, k, scale, SOFTCAP, MATHS, UP) * LOG2E
            mask = visible(row, start, prefix_end, segment, key, WINDOW) & here[None, :]
            s = tl.where(mask, s, -float("inf"))
            new_top = tl.maximum(top, tl.max(s, 1))
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(s - new_top[:, None])
            total = total * shrink + tl.sum(p, 1)
            v = tl.load(v_base + at[:, None] * v_token + d[None, :], here[:, None] & (d < DIM)[None, :], 0.0)
            if not UP:
                p = p.to(v.dtype)
            acc = dot(p, v, acc * shrink[:, None], UP)
            top = new_top
    out = offset[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
    total = tl.where(live, total, 1.0)
    tl.store(out_ptr + out, acc / total[:, None], live[:, None] & (d < DIM)[None, :])
    tl.store(lse_ptr + head * queries + index, top + tl.log2(total), live)


@triton.jit
def prefix_attention_dq_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, delta_ptr, dq_ptr, layout_ptr, rows_ptr, queries, tokens,
    scale: tl.constexpr, g_token, g_head, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * M + tl.arange(0, M)
    live = index < queries
    d = tl.arange(0, WIDTH)
    offset = index.to(tl.int64)
    whole = live[:, None] & (d < DIM)[None, :]
    out_at = offset[:, None] * (HEADS * DIM) + head * DIM + d[None, :]
    q = tl.load(q_ptr + offset[:, None] * q_token + head * q_head + d[None, :], whole, 0.0)
    grad = tl.load(grad_ptr + offset[:, None] * g_token + head * g_head + d[None, :], whole, 0.0)
    out = tl.load(out_ptr + out_at, whole, 0.0).to(MATHS)
    delta = tl.sum(out * grad.to(MATHS), 1)
    tl.store(delta_ptr + head * queries + index, delta, live)
    lse = tl.load(lse_ptr + head * queries + index, live, 0.0)
    row, start, prefix_end, segment = query_rows(layout_ptr, rows_ptr, index, live, tokens, ROWS)
    first, last, own_first, own_last = key_ranges(row, start, prefix_end, segment, WINDOW)
    k_base = k_ptr + (head // GROUP) * k_head
    v_base = v_ptr + (head // GROUP) * v_head
    dq = tl.zeros((M, WIDTH), MATHS)
    for part in tl.static_range(2):
        low = first if part == 0 else own_first
        high = last if part == 0 else own_last
        for begin in range(low, high, N):
            key = begin + tl.arange(0, N)
            here = key < high
            at = key.to(tl.int64)
            k = tl.load(k_base + at[None, :] * k_token + d[:, None], here[None, :] & (d < DIM)[:, None], 0.0)
            s = logits(q, k, scale, SOFTCAP, MATHS, UP)
            mask = visible(row, start, prefix_end, segment, key, WINDOW) & here[None, :]
            p = tl.exp2(tl.where(mask, s * LOG2E - lse[:, None], -float("inf")))
            v = tl.load(v_base + at[None, :] * v_token + d[:, None], here[None, :] & (d < DIM)[:, None], 0.0)
            ds = p * (dot(grad, v, tl.zeros((M, N), MATHS), UP) - delta[:, None])
            if SOFTCAP > 0:
                ds *= 1.0 - (s / SOFTCAP) * (s / SOFTCAP)
            if not UP:
                ds = ds.to(k.dtype)
            dq = dot(ds, tl.trans(k), dq, UP)
    tl.store(dq_ptr + out_at, dq * scale, whole)


@triton.jit
def prefix_attention_dkv_kernel(
    grad_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, layout_ptr, rows_ptr, span_ptr, queries, tokens,
    scale: tl.constexpr, g_token, g_head, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MATHS: tl.constexpr, UP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    program, kv_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    key = program * N + tl.arange(0, N)
    here = key < tokens
    d = tl.arange(0, WIDTH)
    at = key.to(tl.int64)
    whole = here[:, None] & (d < DIM)[None, :]
    k = tl.load(k_ptr + at[:, None] * k_token + kv_head * k_head + d[None, :], whole, 0.0)
    v = tl.load(v_ptr + at[:, None] * v_token + kv_head * v_head + d[None, :], whole, 0.0)
    if ROWS:  # which of the given rows lie where a key of this tile is seen
        low = tl.load(span_ptr + 2 * program)
        high = tl.load(span_ptr + 2 * program + 1)
    else:
        low = program * N
        high = tl.max(tl.load(layout_ptr + 3 * tokens + key, here, 0), 0)
    dk = tl.zeros((N, WIDTH), MATHS)
    dv = tl.zeros((N, WIDTH), MATHS)
    # All query heads of this key head, all responses of a prompt: summed here, in one order, without atomics.
    for member in range(GROUP):
        head = kv_head * GROUP + member
        for begin in range(low, high, M):
            index = begin + tl.arange(0, M)
            live = index < high
            offset = index.to(tl.int64)
            loaded = live[:, None] & (d < DIM)[None, :]
            q = tl.load(q_ptr + offset[:, None] * q_token + head * q_head + d[None, :], loaded, 0.0)
            grad = tl.load(grad_ptr + offset[:, None] * g_token + head * g_head + d[None, :], loaded, 0.0)
            lse = tl.load(lse_ptr + head * queries + index, live, 0.0)
            delta = tl.load(delta_ptr + head * queries + index, live, 0.0)
            row, start, prefix_end, segment = query_rows(layout_ptr, rows_ptr, index, live, tokens, ROWS)
            s = logits(q, tl.trans(k), scale, SOFTCAP, MATHS, UP)
            mask = visible(row, start, prefix_end, segment, key, WINDOW) & here[None, :]
            p = tl.exp2(tl.where(mask, s * LOG2E - lse[:, None], -float("inf")))
            ds = p * (dot(grad, tl.trans(v), tl.zeros((M, N), MATHS), UP) - delta[:, None])
            if SOFTCAP > 0:
                ds *= 1.0 - (s / SOFTCAP) * (s / SOFTCAP)
            if not UP:
                p = p.to(grad.dtype)
                ds = ds.to(q.dtype)
            dv = dot(tl.trans(p), grad, dv, UP)
            dk = dot(tl.trans(ds), q, dk, UP)
    out = at[:, None] * (tl.num_programs(1) * DIM) + kv_head * DIM + d[None, :]
    tl.store(dk_ptr + out, dk * scale, whole)
    tl.store(dv_ptr + out, dv, whole)


def _options(
    q: Tensor, k: Tensor, rows: Tensor | None, window: int | None, softcap: float | None, t: Tile
) -> dict[str, object]:
    return {
        "HEADS": q.shape[1],
        "GROUP": q.shape[1] // k.shape[1],
        "DIM": q.shape[2],
        "WIDTH": max(16, triton.next_power_of_2(q.shape[2])),
        "ROWS": rows is not None,
        "WINDOW": window or 0,
        "SOFTCAP": float(softcap or 0),
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


def _spans(layout: Tensor, rows: Tensor, keys: int) -> Tensor:
    """int32 [tiles, 2]: the range of `rows` (ascending) that may see a key of each tile of `keys` keys."""
    tokens = layout.shape[1]
    tiles = triton.cdiv(tokens, keys)
    last = torch.zeros(tiles * keys, dtype=torch.int32, device=layout.device)
    last[:tokens] = layout[3]
    edges = torch.stack((torch.arange(tiles, device=rows.device) * keys, last.view(tiles, keys).amax(1).long()), 1)
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
    t = tile("fwd", q, rows is not None, softcap is not None)
    launch(
        prefix_attention_fwd_kernel, (triton.cdiv(queries, t.queries), heads),
        q, k, v, out, lse, layout, layout if rows is None else rows, queries, layout.shape[1], scale,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        **_options(q, k, rows, window, softcap, t),
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
    t = tile("dq", q, rows is not None, softcap is not None)
    launch(
        prefix_attention_dq_kernel, (triton.cdiv(queries, t.queries), heads),
        grad, q, k, v, out, lse, delta, dq, layout, row_list, queries, tokens, scale, *strides,
        **_options(q, k, rows, window, softcap, t),
    )  # fmt: skip
    t = tile("dkv", q, rows is not None, softcap is not None)
    spans = layout if rows is None else _spans(layout, rows, t.keys)
    launch(
        prefix_attention_dkv_kernel, (triton.cdiv(tokens, t.keys), kv_heads),
        grad, q, k, v, lse, delta, dk, dv, layout, row_list, spans, queries, tokens, scale, *strides,
        **_options(q, k, rows, window, softcap, t),
    )  # fmt: skip
    return dq, dk, dv
