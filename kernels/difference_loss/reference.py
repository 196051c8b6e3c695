"""The difference loss in plain torch: pairs in chunks of rows, made once for the loss and again for the gradient."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PAIRS = 1 << 20  # of samples at a time


def _sums(scores: Tensor, start: Tensor, first: int, last: int) -> Tensor:
    """Of samples first..last-1, sorted by group, the sum of sigmoid(|difference|) over the others of their group."""
    rows = slice(first, last)
    position = torch.arange(len(scores), device=scores.device)
    pair = (start[rows, None] == start) & (position[rows, None] != position)
    # Masked before and after, so that no score that is not finite reaches another group.
    d = torch.where(pair, scores[rows, None] - scores, 0)
    return torch.where(pair, torch.sigmoid(d.abs()), 0).sum(1)


def difference_loss(scores: Tensor, group: Tensor, pairs: bool) -> Tensor:
    """scores, group [S] -> mean over groups of J."""
    keys, order = group.sort()
    scores, samples = scores[order], len(scores)
    start, end = torch.searchsorted(keys, keys), torch.searchsorted(keys, keys, right=True)
    groups = (start == torch.arange(samples, device=start.device)).sum()
    step = max(1, PAIRS // max(samples, 1))
    if samples <= step:
        sums = _sums(scores, start, 0, samples)
    else:
        # Autograd would keep every chunk for the gradient; a checkpoint keeps its inputs, which all chunks share.
        sums = torch.cat([
            checkpoint(_sums, scores, start, i, min(i + step, samples), use_reentrant=False, preserve_rng_state=False)
            for i in range(0, samples, step)
        ])  # fmt: skip
    size = (end - start).to(scores.dtype)
    # Each pair is met from both ends, hence 1 / k^2 and not 2 / k^2.
    count = (size * (size - 1)).clamp(min=1) if pairs else size * size
    return (sums / count).sum() / groups.clamp(min=1)
