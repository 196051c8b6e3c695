"""Keys and values of prompts and samples, in one pool of a fixed size, and how layers read and write them."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rmfast.kernels import prefix_attention
from rmfast.kernels.decode_attention import decode_attention


class Extents:
    """Runs of places, taken where they fit first and given back."""

    def __init__(self, size: int) -> None:
        self.free = [(0, size)] if size else []  # begin and end, sorted, apart

    def take(self, count: int) -> int | None:
        """Where a run of so many places begins; None where there is none."""
        if not count:
            return 0
        for i, (begin, end) in enumerate(self.free):
            if end - begin >= count:
                self.free[i : i + 1] = [(begin + count, end)] if end - begin > count else []
                return begin
        return None

    def give(self, begin: int, count: int) -> None:
        """Take back a run."""
        if not count:
            return
        low = high = bisect_left(self.free, (begin, 0))
        end = begin + count
        if low and self.free[low - 1][1] == begin:
            low -= 1
            begin = self.free[low][0]
        if high < len(self.free) and self.free[high][0] == end:
            end = self.free[high][1]
            high += 1
        self.free[low:high] = [(begin, end)]


class Pool:
    """Keys and values of the layers that a process holds: [2, tokens, Hkv, D] each.

    Args:
        layers: their numbers in the model.
        tokens: room of the pool.
        kv_heads: those that this process holds.
    """

    def __init__(
        self, layers: Iterable[int], tokens: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (2, tokens, kv_heads, head_dim)
        self.layers = {layer: torch.empty(shape, dtype=dtype, device=device) for layer in layers}


class PromptMemory:
    """Attention within a pack of prompts, whose keys and values are kept.

    Args:
        layout: int32 [4, T], the pack's. places: int64 [T], where each of its tokens is kept.
    """

    def __init__(self, pool: Pool, layout: Tensor, places: Tensor) -> None:
        self.pool, self.layout, self.places = pool, layout, places

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor | None, impl: str, **options: Any
    ) -> Tensor:
        """See `Memory`."""
        keys, values = self.pool.layers[layer]
        keys.index_copy_(0, self.places, k)
        values.index_copy_(0, self.places, v)
        return prefix_attention(q, k, v, self.layout, rows=rows, impl=impl, **options)


class RowMemory:
    """Attention of one token for each of some rows, to the row's prompt and to its tokens so far.

    Args:
        layout: int32 [4, R], as `decode_attention` takes it; both parts are in the pool.
    """

    def __init__(self, pool: Pool, layout: Tensor) -> None:
        self.pool, self.layout = pool, layout

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor | None, impl: str, **options: Any
    ) -> Tensor:
        """See `Memory`."""
        assert rows is None  # every row is read
        pool = self.pool.layers[layer]
        # Flash attention reads no pool, and no kernel has a soft cap.
        impl = "reference" if options["softcap"] is not None else "auto" if impl == "flash" else impl
        return decode_attention(q, pool, pool, self.layout, append=(k, v), impl=impl, **options)
