"""Triton kernels of the ranking loss and their launcher. The gradient is computed with the loss."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import capability, cdiv, launch, maths


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], exact to rounding also where 1 + x rounds."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def per_edge(ptr, edge, mask, head_stride, edge_stride, VALUE: tl.constexpr, MATHS: tl.constexpr):
    """A value of each edge: loaded, or where VALUE is 0 or 1 that number."""
    if VALUE is None:
        at = tl.program_id(1).to(tl.int64) * head_stride + edge * edge_stride
        x = tl.load(ptr + at, mask, 0).to(MATHS)
    else:
        x = tl.where(mask, tl.full(edge.shape, VALUE, MATHS), 0.0)
    return x


@triton.jit(do_not_specialize=["edges", "scores", "scores_head", "margin_head", "target_head", "weight_head"])
def ranking_loss_fwd_kernel(
    scores_ptr, ends_ptr, margin_ptr, target_ptr, weight_ptr, grad_ptr, partial_ptr, edges, scores,
    scores_head, scores_stride, margin_head, margin_edge, target_head, target_edge, weight_head, weight_edge,
    center_ptr,
    MARGIN: tl.constexpr, TARGET: tl.constexpr, WEIGHT: tl.constexpr, CENTER: tl.constexpr, BLOCK: tl.constexpr,
    MATHS: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    edge = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = edge < edges
    margin = per_edge(margin_ptr, edge, mask, margin_head, margin_edge, MARGIN, MATHS)
    target = per_edge(target_ptr, edge, mask, target_head, target_edge, TARGET, MATHS)
    weight = per_edge(weight_ptr, edge, mask, weight_head, weight_edge, WEIGHT, MATHS)
    better, worse = tl.load(ends_ptr + edge, mask, 0), tl.load(ends_ptr + edges + edge, mask, 0)
    inside = mask & (better >= 0) & (better < scores) & (worse >= 0) & (worse < scores)
    row = scores_ptr + head * scores_head
    outside = float("nan")
    b = tl.load(row + better * scores_stride, inside, outside).to(MATHS)
    w = tl.load(row + worse * scores_stride, inside, outside).to(MATHS)

    d = b - w - margin
    e = tl.exp(-tl.abs(d))
    small = e / (1.0 + e)  # sigmoid(-|d|)
    loss = tl.where(d < 0, -d, 0.0) + log1p(e) + (1.0 - target) * d
    slope = tl.where(d < 0, small - target, (1.0 - target) - small)  # sigmoid(d) - target, without cancellation
    grad_better, grad_worse = slope, -slope
    if CENTER:
        both = b + w
        center = tl.load(center_ptr)
        loss += center * both * both
        grad_better += 2.0 * center * both
        grad_worse += 2.0 * center * both
    counts = weight != 0
    loss = tl.where(counts, loss * weight, 0.0)
    ends = grad_ptr + head * 2 * edges + edge
    tl.store(ends, tl.where(counts, grad_better * weight, 0.0), mask)
    tl.store(ends + edges, tl.where(counts, grad_worse * weight, 0.0), mask)
    partial = partial_ptr + (head * tl.num_programs(0) + block) * 2
    tl.store(partial, tl.sum(loss, 0))
    tl.store(partial + 1, tl.sum(weight, 0))


@triton.jit(do_not_specialize=["edges", "scores", "blocks"])
def ranking_loss_sum_kernel(
    grad_ptr, order_ptr, starts_ptr, partial_ptr, total_ptr, loss_ptr, unit_ptr, edges, scores, blocks, total_stride,
    TOTAL: tl.constexpr, SCORES: tl.constexpr, STEP: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """Losses from the blocks' sums; each score's gradient from those of the edge ends that touch it, in edge order."""
    head = tl.program_id(1).to(tl.int64)
    loss, total = tl.zeros((STEP,), MATHS), tl.zeros((STEP,), MATHS)
    for first in range(0, blocks, STEP):
        block = first + tl.arange(0, STEP)
        partial = partial_ptr + (head * blocks + block) * 2
        loss += tl.load(partial, block < blocks, 0.0)
        total += tl.load(partial + 1, block < blocks, 0.0)
    loss, total = tl.sum(loss, 0), tl.sum(total, 0)
    if TOTAL:
        total = tl.load(total_ptr + head * total_stride).to(MATHS)
    inverse = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
    if tl.program_id(0) == 0:
        tl.store(loss_ptr + head, tl.where(total == 0, 0.0, loss * inverse))

    score = tl.program_id(0) * SCORES + tl.arange(0, SCORES)
    start = tl.load(starts_ptr + score, score < scores, 0)
    end = tl.load(starts_ptr + score + 1, score < scores, 0)
    unit = tl.zeros((SCORES,), MATHS)
    for step in range(0, tl.max(end - start, 0), STEP):
        at = start[:, None] + step + tl.arange(0, STEP)[None, :]  # [SCORES, STEP]
        mask = at < end[:, None]
        order = tl.load(order_ptr + at, mask, 0)
        unit += tl.sum(tl.load(grad_ptr + head * 2 * edges + order, mask, 0.0), 1)
    unit = tl.where(total == 0, 0.0, unit * inverse)
    tl.store(unit_ptr + head * scores + score, unit, score < scores)


def ranking_loss_fwd(
    scores: Tensor, better: Tensor, worse: Tensor, values: list[Tensor | float], center: float, total: Tensor | None
) -> tuple[Tensor, Tensor]:
    """scores [M, S]; values: margin, target, weight, numbers or tensors [], [E] or [M, E] -> losses [M] and their
    gradients of the scores [M, S]."""
    heads, width = scores.shape
    edges = len(better)
    ends = torch.cat([better, worse]).to(torch.int64)
    # Stable, so that the ends of one score stay in edge order and its sum is the same in every run.
    keys, order = ends.sort(stable=True)
    starts = torch.searchsorted(keys, torch.arange(width + 1, device=scores.device))
    dtype = maths_dtype(scores)
    small = capability(scores) == (0, 0)
    block, rows, step = (32, 16, 16) if small else (256, 64, 16)
    blocks = cdiv(edges, block)
    grad = torch.empty(heads, 2 * edges, dtype=dtype, device=scores.device)
    partial = torch.empty(heads, blocks, 2, dtype=dtype, device=scores.device)
    loss, unit = grad.new_empty(heads), grad.new_empty(heads, width)

    def number(x: float) -> Tensor:
        return torch.full((), x, dtype=dtype, device=scores.device)

    tensors: list[Tensor] = []
    strides: list[int] = []
    known: list[float | None] = []  # what the kernel is compiled for; it takes any other number as data
    for value in values:
        if not isinstance(value, Tensor) and value in (0.0, 1.0):
            known.append(value)
            tensors.append(scores)
        else:
            known.append(None)
            tensors.append((value if isinstance(value, Tensor) else number(value)).expand(heads, edges))
        strides += tensors[-1].stride()
    launch(
        ranking_loss_fwd_kernel, (blocks, heads), scores, ends, *tensors, grad, partial, edges, width,
        scores.stride(0), scores.stride(1), *strides, number(center) if center else scores,
        MARGIN=known[0], TARGET=known[1], WEIGHT=known[2], CENTER=center != 0, BLOCK=block, MATHS=maths(scores),
    )  # fmt: skip
    totals = loss if total is None else total.expand(heads)
    launch(
        ranking_loss_sum_kernel, (max(1, cdiv(width, rows)), heads), grad, order, starts, partial, totals, loss,
        unit, edges, width, blocks, totals.stride(0),
        TOTAL=total is not None, SCORES=rows, STEP=step, MATHS=maths(scores),
    )  # fmt: skip
    return loss, unit
