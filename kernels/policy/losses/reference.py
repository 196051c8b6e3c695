"""The clipped losses in plain torch. Where a clipped term decides, the gradient is 0 and not 0 times a ratio that may
have overflowed."""

import torch
from torch import Tensor


def _mean(losses: Tensor, mask: Tensor, total: Tensor | None) -> Tensor:
    """The mean over the mask's weights; losses are finite where the mask is 0."""
    denominator = mask.sum() if total is None else total
    mean = (losses * mask).sum() / torch.where(denominator == 0, 1, denominator)
    return torch.where(denominator == 0, 0, mean)


def policy_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, mask: Tensor, clip: float, total: Tensor | None
) -> Tensor:
    log_ratio, advantage = (torch.where(mask != 0, x, 0) for x in (log_prob - old_log_prob, advantage))
    with torch.no_grad():
        ratio = log_ratio.exp()
        clipped = -advantage * ratio.clamp(1 - clip, 1 + clip)
        free = ~(-advantage * ratio < clipped)
    return _mean(torch.where(free, -advantage * torch.where(free, log_ratio, 0).exp(), clipped), mask, total)


def value_loss(
    value: Tensor, old_value: Tensor, returns: Tensor, mask: Tensor, clip: float | None, total: Tensor | None
) -> Tensor:
    value, old_value, returns = (torch.where(mask != 0, x, 0) for x in (value, old_value, returns))
    losses = (value - returns).square()
    if clip is not None:
        with torch.no_grad():
            clipped = (value.clamp(old_value - clip, old_value + clip) - returns).square()
        losses = torch.where(losses < clipped, clipped, losses)
    return 0.5 * _mean(losses, mask, total)
