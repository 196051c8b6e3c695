"""The ranking loss in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def edge_losses(better: Tensor, worse: Tensor, margin: Tensor | float, target: Tensor | float, center: float) -> Tensor:
    """Loss of each edge from the scores at its two ends, [..., E].

    -log sigmoid(d) + (1 - target) d with d = better - worse - margin is the cross-entropy between Bernoulli(target) and
    sigmoid(d) (Part II, equations 2, 5 and 6), written so that no large |d| overflows.
    """
    d = better - worse - margin
    loss = -F.logsigmoid(d) + (1 - target) * d
    return loss + center * (better + worse).square() if center else loss


def ranking_loss(
    scores: Tensor,
    better: Tensor,
    worse: Tensor,
    margin: Tensor | float,
    target: Tensor | float,
    weight: Tensor | float,
    center: float,
    total: Tensor | float | None,
) -> Tensor:
    """scores [S] or [M, S] -> the weighted mean of `edge_losses`, [] or [M]."""
    b, w = scores.index_select(-1, better), scores.index_select(-1, worse)
    weight = torch.as_tensor(weight, dtype=scores.dtype, device=scores.device).expand_as(b)
    # An edge of weight 0 adds nothing, whatever it holds: 0 * inf would be nan, in the loss or in its gradient.
    counts = weight != 0
    b, w = torch.where(counts, b, 0), torch.where(counts, w, 0)
    margin, target = (torch.where(counts, x, 0) if isinstance(x, Tensor) else x for x in (margin, target))
    total_loss = torch.where(counts, edge_losses(b, w, margin, target, center) * weight, 0).sum(-1)
    denominator = weight.sum(-1) if total is None else total
    if not isinstance(denominator, Tensor):
        return total_loss / denominator if denominator else total_loss * 0
    denominator = denominator.to(scores.dtype)
    return torch.where(denominator == 0, 0, total_loss / torch.where(denominator == 0, 1, denominator))
