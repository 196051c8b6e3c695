"""The difference loss in plain torch."""

import torch
from torch import Tensor


def difference_loss(scores: Tensor, group: Tensor, pairs: bool) -> Tensor:
    """scores, group [S] -> mean over groups of J. A table of S x S: a batch has hundreds of samples."""
    same = group[:, None] == group[None, :]
    size = same.sum(1)
    position = torch.arange(len(group), device=group.device)
    groups = (~(same & (position[:, None] > position[None, :])).any(1)).sum()  # samples that are their group's first
    pair = same & (position[:, None] != position[None, :])
    # Masked before and after, so that no score that is not finite reaches another group.
    d = torch.where(pair, scores[:, None] - scores[None, :], 0)
    sums = torch.where(pair, torch.sigmoid(d.abs()), 0).sum(1)  # each pair is met from both ends, hence 1 / k^2
    count = (size * (size - 1)).clamp(min=1) if pairs else size * size
    return (sums / count).sum() / groups.clamp(min=1)
