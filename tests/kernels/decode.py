"""Inputs of decode attention, and its truth: a plain softmax, row by row."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmfast.kernels import decode_attention
from tests.kernels.harness import DEVICE

Groups = list[tuple[int, list[int]]]
# Runs of 1, 3 and 17 rows; one prompt empty, one row idle, own parts empty and long.
RAGGED: Groups = [(5, [3]), (40, [1, 0, 9]), (0, [2, 0]), (19, list(range(17))), (7, [35])]


class Inputs(NamedTuple):
    """What `decode_attention` takes."""

    q: Tensor
    prompt_kv: Tensor
    own_kv: Tensor
    layout: Tensor


def make(
    groups: Groups, heads: tuple[int, int] = (6, 2), dim: int = 16, dtype: torch.dtype = torch.float32,
    one_pool: bool = False,
) -> Inputs:  # fmt: skip
    """Prompts of so many tokens with so many own tokens of each row. Room before, between and after the ranges, and its
    contents NaN; a prompt's rows are adjacent. `one_pool`: prompts and own tokens share it."""
    place, prompts, owns = 3, [], []
    for prompt, _ in groups:
        prompts.append((place, place + prompt))
        place += prompt + 2
    prompt_room, place = place, place if one_pool else 1
    for _, lengths in groups:
        for length in lengths:
            owns.append((place, place + length))
            place += length + 1
    sizes = (place, place) if one_pool else (prompt_room, place)
    repeated = [p for p, (_, lengths) in zip(prompts, groups, strict=True) for _ in lengths]
    columns = [[*p, *o] for p, o in zip(repeated, owns, strict=True)]
    layout = torch.tensor(columns, dtype=torch.int32, device=DEVICE).reshape(-1, 4).T.contiguous()
    pools = [torch.full((2, n, heads[1], dim), torch.nan, dtype=dtype, device=DEVICE) for n in sizes]
    prompt_pool, own_pool = pools[:1] * 2 if one_pool else pools
    for pool, ranges in ((prompt_pool, prompts), (own_pool, owns)):
        for begin, end in ranges:
            pool[:, begin:end] = torch.randn(2, end - begin, heads[1], dim, device=DEVICE).to(dtype)
    q = torch.randn(len(owns), heads[0], dim, device=DEVICE).to(dtype)
    return Inputs(q, prompt_pool, own_pool, layout)


def by_row(
    q: Tensor, prompt_kv: Tensor, own_kv: Tensor, layout: Tensor, *, scale: float | None = None,
    window: int | None = None,
) -> Tensor:  # fmt: skip
    out = torch.zeros_like(q)
    for row, (prompt, prompt_end, own, own_end) in enumerate(layout.T.tolist()):
        keys, values = torch.cat((prompt_kv[:, prompt:prompt_end], own_kv[:, own:own_end]), 1)
        if window is not None:
            keys, values = keys[-window:], values[-window:]
        if len(keys):
            keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (keys, values))
            logits = torch.einsum("hd,khd->hk", q[row], keys) * (scale or q.shape[2] ** -0.5)
            out[row] = torch.einsum("hk,khd->hd", logits.softmax(1), values)
    return out


def error(impl: str, inputs: Inputs, **options: Any) -> float:
    """How far an implementation is from fp64; the outputs are averages of unit normal numbers."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    got = decode_attention(*inputs, impl=impl, **options)
    assert got.dtype == inputs.q.dtype and got.shape == inputs.q.shape
    return (got.double() - by_row(*wide, **options)).abs().max().item() if got.numel() else 0.0
