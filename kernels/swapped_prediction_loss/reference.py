"""The swapped prediction loss in plain torch."""

import torch.nn.functional as F
from torch import Tensor

from rmfast.kernels.sinkhorn import reference as codes_of


def swapped_prediction_loss(
    s: Tensor,
    t: Tensor,
    prototypes: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
    codes: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Sum over the batch of both directions; everything in the dtype of the maths. Codes given are constants."""
    scores_s, scores_t = (F.normalize(x, dim=1) @ F.normalize(prototypes, dim=1).T for x in (s, t))
    if codes is None:
        q_s, q_t = (codes_of.sinkhorn(x.detach(), epsilon, iterations) for x in (scores_s, scores_t))
    else:
        q_s, q_t = codes
    likelihood = q_s * (scores_t / temperature).log_softmax(1) + q_t * (scores_s / temperature).log_softmax(1)
    return -likelihood.sum()
