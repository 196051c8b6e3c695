"""The mask of attention, sliding window included: which keys a query sees and which queries a key, as intervals.
Functions of the kernels in triton.py, whose dkv kernel repeats the window's rule for its loop."""

import triton
import triton.language as tl

FAR = tl.constexpr(2**31 - 1)  # no token's index
ALL = tl.constexpr(-1)  # instead of a group: all groups of a tile at once
NONE = tl.constexpr(-1)  # instead of the group of what is no token: after no group, and never the end of a range


@triton.jit
def chosen(group, current):
    """Which groups are `current`, all if it is ALL. One comparison of vectors: as a mask, Triton 3.9's interpreter
    refuses what a comparison of scalars is part of."""
    return group == tl.where(current == ALL, group, current)


@triton.jit
def query_tile(
    layout_ptr, rows_ptr, block, current, queries, tokens, ROWS: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """Of a tile of queries: index, token, group, prefix end, segment, and which belong to `current`; group NONE of
    those that are none."""
    index = block * M + tl.arange(0, M)
    live = index < queries
    row = tl.load(rows_ptr + index, live, 0).to(tl.int32) if ROWS else index
    group = tl.load(layout_ptr + row, live, NONE)
    prefix_end = tl.load(layout_ptr + tokens + row, live, 0)
    segment = tl.load(layout_ptr + 2 * tokens + row, live, 0)
    return index, row, group, prefix_end, segment, live & chosen(group, current)


@triton.jit
def key_tile(layout_ptr, block, current, tokens, N: tl.constexpr):
    """Of a tile of keys: token, group, and which belong to `current`; group NONE of those that are none."""
    key = block * N + tl.arange(0, N)
    group = tl.load(layout_ptr + key, key < tokens, NONE)
    return key, group, (key < tokens) & chosen(group, current)


@triton.jit
def query_keys(row, group, prefix_end, segment, live, WINDOW: tl.constexpr):
    """The keys that live queries see: (first, count) in the prefix, then in their own segment after it."""
    responds = live & (row >= prefix_end)
    prefix, suffix = group, segment
    if WINDOW:
        # Positions restart in every response: what lies between the prefix and the query's segment does not count.
        gap = tl.where(responds, segment - prefix_end, 0)
        prefix = tl.maximum(group, row - gap - (WINDOW - 1))
        suffix = tl.maximum(segment, row - (WINDOW - 1))
    prefix_count = tl.maximum(tl.minimum(prefix_end, row + 1) - prefix, 0)
    return prefix, tl.where(live, prefix_count, 0), suffix, tl.where(responds, row + 1 - suffix, 0)


@triton.jit
def span(first, count):
    """From where to where the intervals reach that are not empty; twice 0 if all are."""
    last = tl.max(tl.where(count > 0, first + count, 0), 0)
    return tl.minimum(tl.min(tl.where(count > 0, first, FAR), 0), last), last


@triton.jit
def key_step(
    step, steps, low, high, suffix_low, suffix_high, prefix, prefix_count, suffix, suffix_count, N: tl.constexpr
):
    """A step's first key, [N] which of its keys anyone may see, and [M, N] which the queries see.

    The first `steps` go through the prefix keys from `low` to `high`, later ones through those of the queries' own
    segments. It is one loop, from 0 on: a pipeline fetches ahead across both, and no sum beyond 2^31 makes up a key.
    """
    later = step >= steps
    begin = tl.where(later, suffix_low - steps * N, low) + step * N
    lane = tl.arange(0, N)
    # One comparison a pair: before its first key the difference is, unsigned, larger than any count.
    distance = (begin - tl.where(later, suffix, prefix))[:, None] + lane[None, :]
    seen = distance.to(tl.uint32) < tl.where(later, suffix_count, prefix_count)[:, None].to(tl.uint32)
    return begin.to(tl.uint32).to(tl.int64), lane < tl.where(later, suffix_high, high) - begin, seen


@triton.jit
def key_queries(layout_ptr, key, here, tokens, WINDOW: tl.constexpr):
    """How many queries from each key itself on may see it, and whether those all do.

    A window ends a key's queries early, except where it reaches from the prefix into the responses: all of them see
    such a key, each as far as it goes.
    """
    count = tl.where(here, tl.load(layout_ptr + 3 * tokens + key, here, 0) - key, 0)
    if WINDOW:
        prefix_end = tl.load(layout_ptr + tokens + key, here, 0)
        plain = (key >= prefix_end) | (prefix_end - key >= WINDOW)
        return tl.where(plain, tl.minimum(count, WINDOW), count), plain
    return count, here


@triton.jit
def next_group(current, group, finite):
    """What a program does after `current` (ALL, or a group of its tile), FAR for nothing more.

    A product of a matrix with NaN or infinity spreads it to every row, 0 times NaN being NaN. A tile whose result is
    not finite is therefore computed again, group by group, each without the others' rows.
    """
    return tl.where((current == ALL) & finite, FAR, tl.min(tl.where(group > current, group, FAR), 0))


@triton.jit
def is_finite(x):
    """Whether a matrix holds neither NaN nor infinity."""
    return tl.sum(tl.sum(x - x, 1), 0) == 0
