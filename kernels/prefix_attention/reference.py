"""Shared-prefix attention, group by group, on `scaled_dot_product_attention`: no mask over the whole pack is built."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.prefix_attention.layout import Segments, parse_layout


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float, softcap: float | None
) -> Tensor:
    """One dense attention: q [Q, Hq, D]; k, v [K, Hkv, D]; mask bool [Q, K] or None -> [Q, Hq, D]."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    if softcap is None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa)
    else:
        if gqa:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        stored, maths = q.dtype, maths_dtype(q, k, v)
        q, k, v = (x.to(maths) for x in (q, k, v))
        logits = softcap * torch.tanh((q @ k.transpose(-1, -2)) * (scale / softcap))
        if causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        out = (logits.softmax(-1) @ v).to(stored)
    return out[0].transpose(0, 1)


def segment_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """bool [queries, keys]: the last `queries` positions of a sequence see up to themselves, `window` keys at most."""
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    mask = key <= position
    return mask if window is None else mask & (position - key < window)


def group_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: list[Segments],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of every token of a pack: q [T, Hq, D]; k, v [T, Hkv, D] -> [T, Hq, D]."""
    sizes = [n for group in groups for n in (group.prefix, *group.responses)]
    # split, not slices: its backward is one concatenation instead of a zero-filled [T, H, D] for every slice.
    qs, ks, vs = (iter(x.split(sizes)) for x in (q, k, v))
    out = []
    for group in groups:
        q_prefix, k_prefix, v_prefix = next(qs), next(ks), next(vs)
        if group.prefix:
            windowed = window is not None and window < group.prefix
            mask = segment_mask(group.prefix, group.prefix, window, q.device) if windowed else None
            causal = not windowed
            out.append(attend(q_prefix, k_prefix, v_prefix, mask, causal=causal, scale=scale, softcap=softcap))
        for length in group.responses:
            keys, values = torch.cat((k_prefix, next(ks))), torch.cat((v_prefix, next(vs)))
            mask = segment_mask(length, group.prefix + length, window, q.device)
            out.append(attend(next(qs), keys, values, mask, causal=False, scale=scale, softcap=softcap))
    return torch.cat(out) if out else q + 0 * (k.sum() + v.sum())  # a gradient of 0, not none


def seen_keys(layout: Tensor, rows: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """bool [rows, keys]: which of the tokens `keys` the tokens `rows` see."""
    key, row = keys[None, :], rows[:, None]
    start, prefix_end, segment, _ = layout[:, rows].long().unsqueeze(-1)
    in_prefix = key < prefix_end
    mask = (key >= start) & (key <= row) & (in_prefix | (key >= segment))
    if window is None:
        return mask
    # Positions restart at the prefix's end in every response, so distance is not the distance in the pack.
    gap = torch.where((row >= prefix_end) & in_prefix, segment - prefix_end, 0)
    return mask & (row - key - gap < window)


def row_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    rows: Tensor,
    groups: list[Segments],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of some tokens only: q [S, Hq, D] are the queries of the tokens `rows` (int [S]), in any order."""
    if not len(rows):
        return q + 0 * (k.sum() + v.sum())
    order = rows.argsort(stable=True)
    sorted_rows = rows[order]
    ends = torch.tensor([g.start + g.prefix + sum(g.responses) for g in groups], device=rows.device)
    counts = torch.diff(torch.searchsorted(sorted_rows, ends), prepend=ends.new_zeros(1)).tolist()
    sizes = [g.prefix + sum(g.responses) for g in groups]
    parts = zip(groups, q[order].split(counts), sorted_rows.split(counts), k.split(sizes), v.split(sizes), strict=True)
    out = []
    for group, q_group, row, keys, values in parts:
        if not len(row):
            continue
        tokens = torch.arange(group.start, group.start + len(keys), device=row.device)
        mask = seen_keys(layout, row, tokens, window)
        out.append(attend(q_group, keys, values, mask, causal=False, scale=scale, softcap=softcap))
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return torch.cat(out)[inverse]


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    rows: Tensor | None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    groups = parse_layout(layout)
    options = {"scale": scale, "window": window, "softcap": softcap}
    if rows is None:
        return group_attention(q, k, v, groups, **options)  # type: ignore[arg-type]
    return row_attention(q, k, v, layout, rows, groups, **options)  # type: ignore[arg-type]


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    rows: Tensor | None,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same by one mask over the whole pack: no host code, at the price of [queries, T] memory."""
    key = torch.arange(len(k), device=q.device)
    mask = seen_keys(layout, key if rows is None else rows, key, window)
    return attend(q, k, v, mask, causal=False, scale=scale, softcap=softcap)
