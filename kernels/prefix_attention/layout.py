"""The layout of a pack: four int32 per token say which keys it sees.

Row 0: first token of its group. Row 1: end of the group's prefix. Row 2: first token of its own segment (the group's
first token for a prefix token, the response's first token otherwise). Row 3: the end (exclusive) of the queries that
see it as a key: the group's end for a prefix token, the segment's end otherwise.
Query q sees key k when `group_start <= k <= q and (k < prefix_end or k >= segment_start)`, with q's own entries.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Segments(NamedTuple):
    """One group of a pack: `prefix` tokens from `start`, then responses of the given lengths (empty ones left out)."""

    start: int
    prefix: int
    responses: tuple[int, ...]


def prefix_layout(groups: Iterable[tuple[int, Sequence[int]]]) -> Tensor:
    """Layout of a pack that lays out `[prefix | response 1 | ... | response N]` group after group.

    Args:
        groups: `(prefix_len, [response_len, ...])` of each group; any length may be 0.

    Returns:
        int32 [4, T] on the CPU.

    Raises:
        ValueError: a length is negative.
    """
    columns: list[tuple[int, int, int, int]] = []
    repeats: list[int] = []
    start = 0
    for prefix, responses in groups:
        if prefix < 0 or any(r < 0 for r in responses):
            raise ValueError(f"prefix_layout: lengths must not be negative, got {(prefix, list(responses))}")
        prefix_end, group_end = start + prefix, start + prefix + sum(responses)
        columns.append((start, prefix_end, start, group_end))
        repeats.append(prefix)
        segment = prefix_end
        for length in responses:
            columns.append((start, prefix_end, segment, segment + length))
            repeats.append(length)
            segment += length
        start = group_end
    table = np.asarray(columns, dtype=np.int32).reshape(-1, 4)
    return torch.from_numpy(np.ascontiguousarray(np.repeat(table, repeats, axis=0).T))


def parse_layout(layout: Tensor) -> list[Segments]:
    """The groups of a layout. Empty groups and empty responses leave no trace in a layout and do not come back."""
    start, prefix_end, segment, _ = layout.cpu().numpy()
    length = len(start)
    if length == 0:
        return []
    # A run of equal (group, side of the prefix's end, segment) is one prefix or one response.
    is_prefix = np.arange(length) < prefix_end
    edge = (np.diff(start) != 0) | (np.diff(segment) != 0) | (np.diff(is_prefix.view(np.int8)) != 0)
    bounds = np.concatenate(([0], np.flatnonzero(edge) + 1, [length])).tolist()
    groups: list[tuple[int, int, list[int]]] = []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        if not groups or groups[-1][0] != start[begin]:
            groups.append((int(start[begin]), int(prefix_end[begin] - start[begin]), []))
        if not is_prefix[begin]:
            groups[-1][2].append(end - begin)
    return [Segments(first, prefix, tuple(responses)) for first, prefix, responses in groups]
