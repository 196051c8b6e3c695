"""Triton kernels of the clipped losses and their launchers. The gradient is computed with the loss."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import capability, cdiv, launch, maths


@triton.jit
def free_grad(grad, free, clipped, inside):
    """The gradient of max(free, clipped) from that of `free`, as `torch.maximum` has it: half where both are equal but
    only one moves, which is outside of the clipped range."""
    grad = tl.where((free == clipped) & (inside == 0), 0.5 * grad, grad)
    return tl.where(free < clipped, 0.0, grad)


@triton.jit(do_not_specialize=["tokens"])
def policy_loss_fwd_kernel(
    log_prob_ptr, old_ptr, advantage_ptr, mask_ptr, unit_ptr, partial_ptr, tokens,
    log_prob_stride, old_stride, advantage_stride, mask_stride,
    CLIP: tl.constexpr, HIGH: tl.constexpr, BLOCK: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    weight = tl.load(mask_ptr + token * mask_stride, inside, 0).to(MATHS)
    counts = inside & (weight != 0)
    log_prob = tl.load(log_prob_ptr + token * log_prob_stride, counts, 0.0).to(MATHS)
    old = tl.load(old_ptr + token * old_stride, counts, 0.0).to(MATHS)
    advantage = tl.load(advantage_ptr + token * advantage_stride, counts, 0.0).to(MATHS)
    ratio = tl.exp(log_prob - old)
    low, high = tl.full((BLOCK,), 1.0 - CLIP, MATHS), tl.full((BLOCK,), 1.0 + HIGH, MATHS)
    within = tl.where(ratio < low, low, tl.where(ratio > high, high, ratio))
    free, clipped = -advantage * ratio, -advantage * within
    unit = free_grad(free, free, clipped, within == ratio)
    tl.store(unit_ptr + token, tl.where(counts, unit * weight, 0.0), inside)
    loss = tl.where(counts, tl.where(free < clipped, clipped, free) * weight, 0.0)
    tl.store(partial_ptr + tl.program_id(0) * 2, tl.sum(loss, 0))
    tl.store(partial_ptr + tl.program_id(0) * 2 + 1, tl.sum(weight, 0))


@triton.jit(do_not_specialize=["tokens"])
def value_loss_fwd_kernel(
    value_ptr, old_ptr, returns_ptr, mask_ptr, unit_ptr, partial_ptr, tokens,
    value_stride, old_stride, returns_stride, mask_stride,
    CLIP: tl.constexpr, BLOCK: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    weight = tl.load(mask_ptr + token * mask_stride, inside, 0).to(MATHS)
    counts = inside & (weight != 0)
    value = tl.load(value_ptr + token * value_stride, counts, 0.0).to(MATHS)
    returns = tl.load(returns_ptr + token * returns_stride, counts, 0.0).to(MATHS)
    error = value - returns
    loss, unit = error * error, error
    if CLIP is not None:
        old = tl.load(old_ptr + token * old_stride, counts, 0.0).to(MATHS)
        clip = tl.full((BLOCK,), CLIP, MATHS)
        low, high = old - clip, old + clip
        within = tl.where(value < low, low, tl.where(value > high, high, value))
        clipped = (within - returns) * (within - returns)
        unit = free_grad(unit, loss, clipped, within == value)
        loss = tl.where(loss < clipped, clipped, loss) + tl.where(low == low, 0.0, low)  # an old value of nan is seen
    tl.store(unit_ptr + token, tl.where(counts, unit * weight, 0.0), inside)
    tl.store(partial_ptr + tl.program_id(0) * 2, tl.sum(tl.where(counts, 0.5 * loss * weight, 0.0), 0))
    tl.store(partial_ptr + tl.program_id(0) * 2 + 1, tl.sum(weight, 0))


@triton.jit(do_not_specialize=["programs"])
def masked_mean_kernel(
    partial_ptr, total_ptr, loss_ptr, inverse_ptr, programs, TOTAL: tl.constexpr, BLOCK: tl.constexpr,
    MATHS: tl.constexpr,
):  # fmt: skip
    loss, total = tl.zeros((BLOCK,), MATHS), tl.zeros((BLOCK,), MATHS)
    for first in range(0, programs, BLOCK):
        program = first + tl.arange(0, BLOCK)
        loss += tl.load(partial_ptr + program * 2, program < programs, 0.0)
        total += tl.load(partial_ptr + program * 2 + 1, program < programs, 0.0)
    loss, total = tl.sum(loss, 0), tl.sum(total, 0)
    if TOTAL:
        total = tl.load(total_ptr).to(MATHS)
    inverse = tl.where(total == 0, 0.0, 1.0 / tl.where(total == 0, 1.0, total))
    tl.store(loss_ptr, tl.where(total == 0, 0.0, loss * inverse))
    tl.store(inverse_ptr, inverse)


def clipped_loss_fwd(
    policy: bool,
    x: Tensor,
    old: Tensor,
    goal: Tensor,
    mask: Tensor,
    clip: float | None,
    clip_high: float | None,
    total: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of log-probabilities and advantages, or of values and returns, all [T] -> loss [], its gradient of x before the
    division by the mask's sum (or `total`) [T], 1 / that sum."""
    tokens = len(x)
    unit = torch.empty(tokens, dtype=maths_dtype(x, old, goal), device=x.device)
    block = 16 if capability(x) == (0, 0) else 1024
    programs = cdiv(tokens, block)
    partial = unit.new_empty(programs, 2)
    loss, inverse = unit.new_empty(()), unit.new_empty(())
    strides = (t.stride(0) for t in (x, old, goal, mask))
    launch(
        policy_loss_fwd_kernel if policy else value_loss_fwd_kernel, (programs,), x, old, goal, mask, unit, partial,
        tokens, *strides,
        CLIP=clip, **({"HIGH": clip_high} if policy else {}), BLOCK=block, MATHS=maths(unit),
    )  # fmt: skip
    launch(
        masked_mean_kernel, (1,), partial, loss if total is None else total, loss, inverse, programs,
        TOTAL=total is not None, BLOCK=min(block, 256), MATHS=maths(unit),
    )  # fmt: skip
    return loss, unit, inverse
