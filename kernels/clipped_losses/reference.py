"""The clipped losses in plain torch. Where a clipped term decides, the gradient is 0 and not 0 times a ratio that may
have overflowed."""

import torch
from torch import Tensor


def _mean(losses: Tensor, mask: Tensor, total: Tensor | None) -> Tensor:
    """The mean over the mask's weights; losses are finite where the mask is 0."""
    denominator = mask.sum() if total is None else total
    mean = (losses * mask).sum() / torch.where(denominator == 0, 1, denominator)
    return torch.where(denominator == 0, 0, mean)


def _greater(free: Tensor, clipped: Tensor, held: Tensor, inside: Tensor) -> Tensor:
    """max(free, clipped) with the gradient of `torch.maximum`: half of each side's where both are equal.

    `held` says where clipped is greater. `inside` the range both sides are one function; outside clipped is constant.
    """
    halves = free / 2 + clipped / 2
    return torch.where(held, clipped, torch.where((free == clipped) & ~inside, halves, free))


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip: float,
    clip_high: float,
    total: Tensor | None,
) -> Tensor:
    log_ratio, advantage = (torch.where(mask != 0, x, 0) for x in (log_prob - old_log_prob, advantage))
    with torch.no_grad():
        ratio = log_ratio.exp()
        within = ratio.clamp(1 - clip, 1 + clip_high)
        clipped = -advantage * within
        held = -advantage * ratio < clipped
    free = -advantage * torch.where(held, 0, log_ratio).exp()
    return _mean(_greater(free, clipped, held, within == ratio), mask, total)


def value_loss(
    value: Tensor, old_value: Tensor, returns: Tensor, mask: Tensor, clip: float | None, total: Tensor | None
) -> Tensor:
    value, old_value, returns = (torch.where(mask != 0, x, 0) for x in (value, old_value, returns))
    losses = (value - returns).square()
    if clip is not None:
        with torch.no_grad():
            within = value.clamp(old_value - clip, old_value + clip)
            clipped = (within - returns).square()
            held = losses < clipped
        losses = _greater(losses, clipped, held, within == value)
        losses = losses + torch.where(clipped.isnan(), clipped, 0)  # of an old value, say: the maximum is nan too
    return 0.5 * _mean(losses, mask, total)
