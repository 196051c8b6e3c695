"""Sinkhorn's iterations in plain torch, in logarithms."""

from torch import Tensor


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """scores [B, K] in the dtype of the maths -> codes [B, K].

    SwAV divides exp(scores / epsilon) in turn by its sums over the batch (each prototype gets 1/K of it) and over the
    prototypes (each row 1/B). Here g and f are the logarithms of what columns and rows have been multiplied by so far;
    the constants 1/K and 1/B cancel in rows that sum to 1.
    """
    logits = scores / epsilon
    f, g = logits.new_zeros(len(logits), 1), logits.new_zeros(1, logits.shape[1])
    for _ in range(iterations):
        g = -(logits + f).logsumexp(0, keepdim=True)
        f = -(logits + g).logsumexp(1, keepdim=True)
    return (logits + g).softmax(1)
