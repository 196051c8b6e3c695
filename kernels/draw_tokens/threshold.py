"""Top-k, top-p and min-p as one threshold on the scores, found by bisection: never by a sort.

Bisection runs over the bit patterns of fp32 in their order, so it ends after 32 steps at the very score, and over sums
alone, so that a row may be spread over the ranks of a group.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from rmfast.kernels.draw_tokens.options import Options

LOWEST, HIGHEST = -(2**31), 2**31 - 1


def ordered(scores: Tensor) -> Tensor:
    """int32 that compare as the fp32 scores do; -0 equals 0."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & HIGHEST)


def total(weights: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sums of rows [R, B, 256] over all ranks: within blocks in fp32, over them in fp64."""
    sums = weights.sum(-1).double().sum(-1)
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums


def largest(scores: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The largest of each row [R, B, 256] over all ranks."""
    top = scores.amax((1, 2))
    if group is not None:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    return top


def bisect(order: Tensor, weights: Tensor, limit: Tensor | float, group: dist.ProcessGroup | None) -> Tensor:
    """The least int32 t of each row with less than `limit` (> 0) of weight on what is ordered above t: what is ordered
    at t or above is what has less than the limit before it. The first of all always is.

    Args:
        order: [R, B, 256], of `ordered`. weights: [R, B, 256], >= 0. limit: [R] fp64 or a number.
    """
    low = torch.full((len(order), 1, 1), LOWEST, dtype=torch.int64, device=order.device)
    high = torch.full_like(low, HIGHEST)
    for _ in range(32):
        middle = (low + high) >> 1
        above = total(torch.where(order > middle, weights, 0), group)
        enough = (above < limit)[:, None, None]
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return high.to(torch.int32)


def kept(scores: Tensor, options: Options, group: dist.ProcessGroup | None) -> Tensor | None:
    """Which of the scores [R, B, 256] top-k, top-p and min-p keep, in that order; None where there are no such filters.

    Equal scores are kept or left together. Top-p is of the distribution that top-k leaves, and keeps a token while the
    mass strictly above it is below top_p. Min-p keeps the scores from the largest + log(min_p) on, in fp32.
    """
    if not options.top_k and options.top_p == 1 and not options.min_p:
        return None
    order, top = ordered(scores), largest(scores, group)
    least = torch.full((len(scores), 1, 1), LOWEST, dtype=torch.int32, device=scores.device)
    if options.top_k:
        least = bisect(order, torch.ones_like(scores), options.top_k, group)
    if options.top_p < 1:
        masses = torch.where(order >= least, (scores - top[:, None, None]).exp(), 0)
        least = bisect(order, masses, options.top_p * total(masses, group), group)
    if options.min_p:
        low = (top.double() + math.log(options.min_p)).float()
        least = torch.maximum(least, ordered(low)[:, None, None])
    return order >= least
