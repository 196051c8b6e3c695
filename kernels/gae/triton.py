"""Triton kernel of generalised advantage estimation and its launcher."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import capability, launch, maths


@triton.jit
def after(later_decay, later_value, decay, value):
    """The maps A -> value + decay A of two stretches of tokens, as one map; `later` is applied first."""
    return later_decay * decay, value + decay * later_value


@triton.jit(do_not_specialize=["tokens"])
def gae_kernel(
    rewards_ptr, values_ptr, ends_ptr, advantages_ptr, returns_ptr, tokens, reward_stride, value_stride,
    GAMMA: tl.constexpr, DECAY: tl.constexpr, BLOCK: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """A program a sequence, from its end to its start; one more program for tokens past the last sequence."""
    sequence = tl.program_id(0)
    last = sequence == tl.num_programs(0) - 1
    start = tl.load(ends_ptr + sequence - 1, sequence > 0, 0)
    end = tl.load(ends_ptr + sequence, sequence < tl.num_programs(0) - 1, 0)
    start = tl.minimum(tl.maximum(start, 0), tokens)
    end = tl.where(last, tokens, tl.minimum(end, tokens))
    lane = tl.arange(0, BLOCK)
    gamma, decay = tl.full((BLOCK,), GAMMA, MATHS), tl.full((BLOCK,), DECAY, MATHS)
    carry = tl.sum(tl.zeros((BLOCK,), MATHS), 0)
    blocks = tl.cdiv(tl.maximum(end - start, 0), BLOCK)
    for back in range(0, blocks):
        token = start + (blocks - 1 - back) * BLOCK + lane
        mask = token < end
        value = tl.load(values_ptr + token * value_stride, mask, 0.0).to(MATHS)
        following = tl.load(values_ptr + (token + 1) * value_stride, token + 1 < end, 0.0).to(MATHS)
        reward = tl.load(rewards_ptr + token * reward_stride, mask, 0.0).to(MATHS)
        delta = reward + gamma * following - value
        reach, advantage = tl.associative_scan((decay, delta), 0, after, reverse=True)
        advantage += reach * carry
        carry = tl.sum(tl.where(lane == 0, advantage, 0.0), 0)
        tl.store(advantages_ptr + token, advantage, mask)
        tl.store(returns_ptr + token, advantage + value, mask)


def gae_fwd(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """rewards, values [T]; lengths [B] -> advantages, returns [T]."""
    advantages = torch.empty(len(rewards), dtype=maths_dtype(rewards, values), device=rewards.device)
    returns = torch.empty_like(advantages)
    ends = lengths.to(torch.int64).cumsum(0)
    block = 8 if capability(rewards) == (0, 0) else 512
    launch(
        gae_kernel, (len(lengths) + 1,), rewards, values, ends, advantages, returns, len(rewards), rewards.stride(0),
        values.stride(0),
        GAMMA=gamma, DECAY=gamma * lam, BLOCK=block, MATHS=maths(rewards, values),
    )  # fmt: skip
    return advantages, returns
