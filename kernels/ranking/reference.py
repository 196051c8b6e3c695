"""The ranking loss in plain torch."""

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
