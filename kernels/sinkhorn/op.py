"""Sinkhorn codes: checks, dispatch, and the custom op of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton, without_autocast
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.sinkhorn import reference


@custom_op("rmfast::sinkhorn")
@without_autocast
def _sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    from rmfast.kernels.sinkhorn import triton

    return triton.sinkhorn(scores, epsilon, iterations)


@_sinkhorn.register_fake
def _(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    return scores.new_empty(scores.shape, dtype=maths_dtype(scores))


@without_autocast
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int, impl: str = "auto") -> Tensor:
    """Codes of a batch: exp(scores / epsilon) spread evenly over the prototypes by SwAV's iterations. No gradient.

    Each iteration makes the columns' sums equal, then the rows'; the codes are its rows scaled to sum to 1. In
    logarithms and at least fp32, so that no scores overflow. Source: Caron et al. 2020 (SwAV), `distributed_sinkhorn`.

    Args:
        scores: [B, K], any B (0 too), K >= 1.
        epsilon: > 0; the smaller, the closer to one prototype a row.
        iterations: >= 0; with 0 only the rows are scaled: softmax(scores / epsilon).
        impl: "auto", "triton" or "reference".

    Returns:
        [B, K], fp32 (fp64 for fp64 scores).

    Raises:
        ValueError: scores are not [B, K] with K >= 1, epsilon is not positive, or iterations are negative.
    """
    op = "sinkhorn"
    check(scores.dim() == 2 and scores.shape[1] > 0, op, f"scores must be [B, K], got {tuple(scores.shape)}")
    check(epsilon > 0, op, "epsilon must be positive")
    check(iterations >= 0, op, f"iterations must not be negative, got {iterations}")
    scores = scores.detach()
    if use_triton(op, impl, scores):
        return _sinkhorn(scores, epsilon, iterations)
    with torch.no_grad():
        return reference.sinkhorn(scores.to(maths_dtype(scores)), epsilon, iterations)
