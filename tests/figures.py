"""Statistics as tensors, for comparisons."""

import torch
from torch import Tensor

from rmfast.objectives.base import Statistics


def sums(statistics: Statistics) -> Tensor:
    """[n], in the order of their names."""
    return torch.stack(list(statistics.sums.values()))


def maxima(statistics: Statistics) -> Tensor:
    """[n], in the order of their names."""
    return torch.stack(list(statistics.maxima.values()))
