"""Decode attention in plain torch: prompts are gathered once for each run of rows that share one."""

import torch
from torch import Tensor

from rmfast.kernels.common import maths_dtype


def append(own_kv: Tensor, layout: Tensor, k: Tensor, v: Tensor) -> None:
    """Write the rows' current keys and values [R, Hkv, D] at own end - 1, where a row's own range is not empty."""
    live = (layout[3] > layout[2]).nonzero()[:, 0]
    at = layout[3, live].long() - 1
    own_kv[0, at] = k[live]
    own_kv[1, at] = v[live]


def _runs(layout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First row of each run of adjacent rows with one prompt [U]; run and place within it of every row [R]."""
    starts = torch.ones(layout.shape[1], dtype=torch.bool, device=layout.device)
    starts[1:] = (layout[:2, 1:] != layout[:2, :-1]).any(0)
    first, run = starts.nonzero()[:, 0], starts.cumsum(0) - 1
    return first, run, torch.arange(len(run), device=run.device) - first[run]


def _gather(pool: Tensor, begin: Tensor, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [B, Hkv, L, D] of ranges of a pool; those beyond a range's count are 0."""
    place = torch.arange(int(count.max()), device=pool.device)
    beyond = place >= count[:, None]
    found = pool[:, (begin[:, None] + place).masked_fill(beyond, 0)]
    found.masked_fill_(beyond[..., None, None], 0)  # unwritten memory may hold NaN, and 0 times NaN is NaN
    keys, values = found.to(dtype).transpose(2, 3)
    return keys, values


def decode_attention(
    q: Tensor,
    prompt_kv: Tensor,
    own_kv: Tensor,
    layout: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """One softmax over the logits of both parts. Waits for the layout on the host."""
    rows, _, dim = q.shape
    kv_heads, dtype = own_kv.shape[2], maths_dtype(q)
    if not rows:
        return q.new_empty(q.shape)
    layout = layout.long()
    prompt_count, own_count = (layout[1::2] - layout[::2]).clamp(min=0)
    first, run, slot = _runs(layout)
    queries = (q.to(dtype) * scale).reshape(rows, kv_heads, -1, dim)
    group, places = queries.shape[2], int(slot.max()) + 1

    def by_run(x: Tensor) -> Tensor:
        """[R, Hkv, G, N] as [U, Hkv, places * G, N], with 0 where a run has fewer rows."""
        out = x.new_zeros(len(first), places, *x.shape[1:])
        out[run, slot] = x
        return out.transpose(1, 2).flatten(2, 3)

    def by_row(x: Tensor) -> Tensor:
        return x.unflatten(2, (places, group)).transpose(1, 2)[run, slot]

    prompt_keys, prompt_values = _gather(prompt_kv, layout[0, first], prompt_count[first], dtype)
    own_keys, own_values = _gather(own_kv, layout[2], own_count, dtype)
    logits = (by_row(by_run(queries) @ prompt_keys.mT), queries @ own_keys.mT)
    unseen = (prompt_count + own_count - window).clamp(min=0) if window is not None else torch.zeros_like(own_count)
    seen = []
    for part, count, hidden in zip(logits, (prompt_count, own_count), (unseen, unseen - prompt_count), strict=True):
        place = torch.arange(part.shape[-1], device=q.device)
        seen.append((place < count[:, None]) & (place >= hidden[:, None]))
    mask = torch.cat(seen, 1)[:, None, None]
    # Without any key the softmax is NaN: filled, as is the weight of every key that is not seen.
    joined = torch.cat(logits, -1)
    if softcap is not None:
        joined = joined.div_(softcap).tanh_().mul_(softcap)
    weights = joined.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0)
    on_prompt, on_own = weights.split([part.shape[-1] for part in logits], -1)
    out = by_row(by_run(on_prompt) @ prompt_values) + on_own @ own_values
    return out.reshape(q.shape).to(q.dtype)
