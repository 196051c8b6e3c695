"""The ranges of keys over which attention loops: no sentinel, no number that wraps around within a few steps."""

import pytest
import torch
import triton
import triton.language as tl

from rmfast.kernels import prefix_layout
from rmfast.kernels.attention.triton import key_ranges, query_rows
from tests.kernels.harness import DEVICE

GROUPS = {
    "long prefix": [(300, [70, 200])],
    "no prefix, no response": [(0, [90, 5]), (130, [])],
    "empty response": [(5, [3, 0, 7]), (200, [1])],
    "one long prompt": [(700, [3, 2])],
}


@triton.jit
def ranges_kernel(
    layout_ptr, rows_ptr, out_ptr, queries, tokens, ROWS: tl.constexpr, WINDOW: tl.constexpr, M: tl.constexpr
):
    index = tl.program_id(0) * M + tl.arange(0, M)
    row, start, prefix_end, segment = query_rows(layout_ptr, rows_ptr, index, index < queries, tokens, ROWS)
    first, last, second_first, second_last = key_ranges(row, start, prefix_end, segment, WINDOW)
    out_ptr += 4 * tl.program_id(0)
    tl.store(out_ptr, first)
    tl.store(out_ptr + 1, last)
    tl.store(out_ptr + 2, second_first)
    tl.store(out_ptr + 3, second_last)


@pytest.mark.parametrize("rows", [False, True], ids=["all tokens", "some rows"])
@pytest.mark.parametrize("window", [0, 1, 100])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("tile", [16, 64, 128])
def test_key_ranges_begin_and_end_within_the_pack(groups, window, tile, rows):
    """The pipeliner issues the loads of the first iterations under `low + i * N < high` in 32 bits, with no branch
    around them, so that a range that begins near 2^31 reads wild addresses although its loop is empty."""
    layout = prefix_layout(groups).to(DEVICE)
    tokens = layout.shape[1]
    chosen = torch.arange(0, tokens, 7, dtype=torch.int32, device=DEVICE) if rows else layout
    queries = len(chosen) if rows else tokens
    tiles = triton.cdiv(queries, tile)
    out = torch.empty(tiles, 4, dtype=torch.int32, device=DEVICE)
    ranges_kernel[(tiles,)](layout, chosen, out, queries, tokens, ROWS=rows, WINDOW=window, M=tile)
    assert out.min() >= 0
    assert out.max() <= tokens
