"""The keys over which attention's programs loop, and the queries: no sentinel among them, and none too many."""

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels import prefix_layout
from rmfast.kernels.prefix_attention.intervals import ALL, key_queries, key_tile, query_keys, query_tile, span
from rmfast.kernels.prefix_attention.reference import seen_keys
from rmfast.kernels.prefix_attention.triton import _spans
from tests.kernels.harness import DEVICE

GROUPS = {
    "long prefix": [(300, [70, 200])],
    "no prefix, no response": [(0, [90, 5]), (130, [])],
    "empty response": [(5, [3, 0, 7]), (200, [1])],
    "one long prompt": [(700, [3, 2])],
}


@triton.jit
def key_spans_kernel(
    layout_ptr, rows_ptr, out_ptr, queries, tokens, ROWS: tl.constexpr, WINDOW: tl.constexpr, M: tl.constexpr
):
    _, row, group, prefix_end, segment, live = query_tile(
        layout_ptr, rows_ptr, tl.program_id(0), ALL, queries, tokens, ROWS, M
    )
    prefix, prefix_count, own, own_count = query_keys(row, group, prefix_end, segment, live, WINDOW)
    low, high = span(prefix, prefix_count)
    own_low, own_high = span(own, own_count)
    out_ptr += 4 * tl.program_id(0)
    tl.store(out_ptr, low)
    tl.store(out_ptr + 1, high)
    tl.store(out_ptr + 2, own_low)
    tl.store(out_ptr + 3, own_high)


@triton.jit
def query_spans_kernel(layout_ptr, out_ptr, tokens, WINDOW: tl.constexpr, N: tl.constexpr):
    key, _, here = key_tile(layout_ptr, tl.program_id(0), ALL, tokens, N)
    count, _ = key_queries(layout_ptr, key, here, tokens, WINDOW)
    low, high = span(key, count)
    tl.store(out_ptr + 2 * tl.program_id(0), low)
    tl.store(out_ptr + 2 * tl.program_id(0) + 1, high)


@pytest.mark.parametrize("rows", [False, True], ids=["all tokens", "some rows"])
@pytest.mark.parametrize("window", [0, 1, 100])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("tile", [16, 64, 128])
def test_ranges_of_keys_are_those_that_the_queries_see(groups, window, tile, rows):
    """A range that began near 2^31 would wrap around within a few steps, and a pipeline load wild addresses."""
    layout = prefix_layout(groups).to(DEVICE)
    tokens = layout.shape[1]
    chosen = torch.arange(0, tokens, 7, dtype=torch.int32, device=DEVICE) if rows else None
    row = torch.arange(tokens, device=DEVICE) if chosen is None else chosen.long()
    tiles = triton.cdiv(len(row), tile)
    out = torch.empty(tiles, 4, dtype=torch.int32, device=DEVICE)
    given = layout if chosen is None else chosen
    key_spans_kernel[(tiles,)](layout, given, out, len(row), tokens, ROWS=rows, WINDOW=window, M=tile)
    key = torch.arange(tokens, device=DEVICE)
    seen = seen_keys(layout, row, key, window or None)
    in_prefix = key < layout[1, row][:, None]
    for i, spans in enumerate(out.view(tiles, 2, 2).tolist()):
        queries = slice(i * tile, (i + 1) * tile)
        for (low, high), part in zip(spans, (in_prefix, ~in_prefix), strict=True):
            keys = (seen & part)[queries].any(0).nonzero().flatten()
            assert (low, high) == ((keys[0], keys[-1] + 1) if len(keys) else (0, 0))


def last_queries(layout: Tensor, window: int) -> Tensor:
    """Behind which token none sees a key, from all pairs; of a key whose window reaches from the prefix into the
    responses, where its group ends."""
    token = torch.arange(layout.shape[1], device=layout.device)
    seen = seen_keys(layout, token, token, window or None)
    last = torch.where(seen, token[:, None], -1).amax(0) + 1
    crosses = (token < layout[1]) & (token + window > layout[1])
    return torch.where(crosses, layout[3], last)


@pytest.mark.parametrize("window", [0, 1, 16, 100, 1000])
@pytest.mark.parametrize("groups", [*GROUPS.values(), [(0, [900])], [(800, [20, 40]), (3, [300])]])
@pytest.mark.parametrize("tile", [16, 64])
def test_dk_and_dv_visit_no_queries_beyond_the_window(groups, window, tile):
    """As many tiles of queries as hold, from the keys on, one that sees a key of the tile. Where a window reaches from
    the prefix into the responses, all responses are visited."""
    layout = prefix_layout(groups).to(DEVICE)
    tokens = layout.shape[1]
    tiles = triton.cdiv(tokens, tile)
    out = torch.empty(tiles, 2, dtype=torch.int32, device=DEVICE)
    query_spans_kernel[(tiles,)](layout, out, tokens, WINDOW=window, N=tile)
    last = last_queries(layout, window)
    want = [triton.cdiv(int(last[i : i + tile].max()) - i, tile) for i in range(0, tokens, tile)]
    assert [triton.cdiv(high - low, tile) for low, high in out.tolist()] == want
    if window == 16 and tokens == 900:
        assert sum(want) == {16: 113, 64: 29}[tile]  # two tiles of queries for each of keys, the last one has one


@pytest.mark.parametrize("window", [None, 1, 16, 100, 1000])
@pytest.mark.parametrize("groups", [*GROUPS.values(), [(0, [900])], [(800, [20, 40]), (3, [300])]])
@pytest.mark.parametrize("every", [1, 3, 50])
def test_dk_and_dv_visit_those_of_some_rows_that_see_a_key_of_the_tile(groups, window, every):
    layout = prefix_layout(groups).to(DEVICE)
    tokens = layout.shape[1]
    rows = torch.arange(every - 1, tokens, every, device=DEVICE).repeat_interleave(2)  # a row may be asked for twice
    last = last_queries(layout, window or 0)
    for tile in (16, 64):
        want = [
            [int((rows < start).sum()), int((rows < last[start : start + tile].max()).sum())]
            for start in range(0, tokens, tile)
        ]
        assert _spans(layout, rows, tile, window).tolist() == want
