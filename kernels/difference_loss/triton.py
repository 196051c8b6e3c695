"""Triton kernels of the difference loss and their launcher. The gradient is computed with the loss."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import capability, cdiv, launch, maths


@triton.jit(do_not_specialize=["samples"])
def difference_loss_fwd_kernel(
    scores_ptr, order_ptr, start_ptr, end_ptr, unit_ptr, partial_ptr, samples, stride,
    PAIRS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """Samples in the order of their groups; each walks the range of its group."""
    program = tl.program_id(0)
    row = program * ROWS + tl.arange(0, ROWS)
    rows = row < samples
    order = tl.load(order_ptr + row, rows, 0)
    start, end = tl.load(start_ptr + row, rows, 0), tl.load(end_ptr + row, rows, 0)
    score = tl.load(scores_ptr + order * stride, rows, 0.0).to(MATHS)
    value, unit = tl.zeros((ROWS,), MATHS), tl.zeros((ROWS,), MATHS)
    for step in range(0, tl.max(end - start, 0), STEP):
        other = start[:, None] + step + tl.arange(0, STEP)[None, :]  # [R, STEP]
        mask = other < end[:, None]
        at = tl.load(order_ptr + other, mask, 0)
        d = score[:, None] - tl.load(scores_ptr + at * stride, mask, 0.0).to(MATHS)
        mask &= other != row[:, None]
        e = tl.exp(-tl.abs(d))
        high = 1.0 / (1.0 + e)  # sigmoid(|d|)
        slope = e * high * high
        value += tl.sum(tl.where(mask, high, 0.0), 1)
        unit += tl.sum(tl.where(mask & (d != 0), tl.where(d < 0, -slope, slope), 0.0), 1)
    size = (end - start).to(MATHS)
    count = size * (size - 1.0) if PAIRS else size * size
    scale = 1.0 / tl.where(count > 0, count, 1.0)
    # Each pair is met from both ends, which halves its share of the value but not of the gradient.
    tl.store(unit_ptr + order, 2.0 * unit * scale, rows)
    tl.store(partial_ptr + program * 2, tl.sum(tl.where(rows, value * scale, 0.0), 0))
    tl.store(partial_ptr + program * 2 + 1, tl.sum(tl.where(rows & (start == row), 1.0, 0.0).to(MATHS), 0))


@triton.jit(do_not_specialize=["programs"])
def difference_loss_sum_kernel(
    partial_ptr, loss_ptr, inverse_ptr, programs, BLOCK: tl.constexpr, MATHS: tl.constexpr
):  # fmt: skip
    value, groups = tl.zeros((BLOCK,), MATHS), tl.zeros((BLOCK,), MATHS)
    for first in range(0, programs, BLOCK):
        program = first + tl.arange(0, BLOCK)
        value += tl.load(partial_ptr + program * 2, program < programs, 0.0)
        groups += tl.load(partial_ptr + program * 2 + 1, program < programs, 0.0)
    inverse = 1.0 / tl.maximum(tl.sum(groups, 0), 1.0)
    tl.store(loss_ptr, tl.sum(value, 0) * inverse)
    tl.store(inverse_ptr, inverse)


def difference_loss_fwd(scores: Tensor, group: Tensor, pairs: bool) -> tuple[Tensor, Tensor, Tensor]:
    """scores, group [S] -> loss [], its gradient before the division by the number of groups [S], 1 / that number."""
    samples = len(scores)
    keys, order = group.sort(stable=True)
    start, end = torch.searchsorted(keys, keys), torch.searchsorted(keys, keys, right=True)
    unit = torch.empty(samples, dtype=maths_dtype(scores), device=scores.device)
    rows, step, block = (16, 16, 4) if capability(scores) == (0, 0) else (64, 16, 256)
    programs = cdiv(samples, rows)
    partial = unit.new_empty(programs, 2)
    loss, inverse = unit.new_empty(()), unit.new_empty(())
    launch(
        difference_loss_fwd_kernel, (programs,), scores, order, start, end, unit, partial, samples, scores.stride(0),
        PAIRS=pairs, ROWS=rows, STEP=step, MATHS=maths(scores),
    )  # fmt: skip
    launch(difference_loss_sum_kernel, (1,), partial, loss, inverse, programs, BLOCK=block, MATHS=maths(scores))
    return loss, unit, inverse
