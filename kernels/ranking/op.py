"""The public op: checks and dispatch."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, check_impl, maths_dtype
from rmfast.kernels.ranking import reference


def ranking_loss(
    scores: Tensor,
    better: Tensor,
    worse: Tensor,
    *,
    margin: Tensor | float = 0.0,
    target: Tensor | float = 1.0,
    weight: Tensor | float | None = None,
    center: float = 0.0,
    total_weight: Tensor | float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Weighted mean over preference edges of the Bradley-Terry loss. Differentiable in `scores`.

    Per edge softplus(-d) + (1 - target) d with d = s_better - s_worse - margin, plus center (s_better + s_worse)^2.
    Source: Secrets of RLHF Part II, equations 2 (loss), 5 (label smoothing) and 6 (margin); centering as in TRL.

    Args:
        scores: [S], or [M, S] for M heads.
        better, worse: int [E], indices into S.
        margin, target, weight: numbers, or [E] or [M, E]; target = P(better is better) in [0, 1]; weight default 1.
        center: coefficient of the centering term.
        total_weight: what the weighted sum is divided by; default the sum of `weight`. A pack that holds part of a
            global batch passes the global batch's sum, so that the packs' losses add up to the batch's.
        impl: "auto" or "reference".

    Returns:
        A scalar, or [M]; fp32 (fp64 for fp64 scores). 0 where there are no edges or their weights are all 0.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op = "ranking_loss"
    check_impl(op, impl)
    check(scores.dim() in (1, 2), op, f"scores must be [S] or [M, S], got {tuple(scores.shape)}")
    check(better.dim() == 1 and better.shape == worse.shape, op, "better and worse must be int [E] of one length")
    check(not better.is_floating_point() and not worse.is_floating_point(), op, "better and worse must be integers")
    edges = (*scores.shape[:-1], len(better))
    for name, value in (("margin", margin), ("target", target), ("weight", weight)):
        fits = not isinstance(value, Tensor) or value.shape in ((), edges[-1:], edges)
        check(fits, op, f"{name} must be a number, [E] or [M, E]")
    scores = scores.to(maths_dtype(scores))
    # Data often come as fp64; the scores alone set the precision.
    margin, target = (x.to(scores.dtype) if isinstance(x, Tensor) else x for x in (margin, target))
    losses = reference.edge_losses(
        scores.index_select(-1, better), scores.index_select(-1, worse), margin, target, center
    )
    weight = torch.as_tensor(1.0 if weight is None else weight, dtype=losses.dtype, device=losses.device)
    weight = weight.expand_as(losses)
    # An edge of weight 0 adds nothing, whatever its loss is (0 * inf would be nan).
    total = torch.where(weight == 0, 0, losses * weight).sum(-1)
    denominator = weight.sum(-1) if total_weight is None else total_weight
    if not isinstance(denominator, Tensor):
        return total / denominator if denominator else total * 0
    return total / torch.where(denominator == 0, 1, denominator)
