"""The public op: checks, dispatch, and the custom op of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, is_index, maths_dtype, to_device, use_triton
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.ranking_loss import reference


@custom_op("rmfast::ranking_loss")
def _ranking_loss(
    scores: Tensor,
    better: Tensor,
    worse: Tensor,
    margins: Tensor | None,
    margin: float,
    targets: Tensor | None,
    target: float,
    weights: Tensor | None,
    weight: float,
    center: float,
    total: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """A number counts where its tensor is None."""
    from rmfast.kernels.ranking_loss import triton

    values = [
        number if tensor is None else tensor
        for tensor, number in ((margins, margin), (targets, target), (weights, weight))
    ]
    return triton.ranking_loss_fwd(scores, better, worse, values, center, total)


@_ranking_loss.register_fake
def _(scores: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    dtype = maths_dtype(scores)
    return scores.new_empty(scores.shape[0], dtype=dtype), scores.new_empty(scores.shape, dtype=dtype)


# An op that takes the scores and has no derivative, so that a second one is refused and not silently 0.
@custom_op("rmfast::ranking_loss_backward")
def _ranking_loss_backward(grad: Tensor, unit: Tensor, scores: Tensor) -> Tensor:
    return (grad[:, None] * unit).to(scores.dtype)


@_ranking_loss_backward.register_fake
def _(grad: Tensor, unit: Tensor, scores: Tensor) -> Tensor:
    return unit.new_empty(unit.shape, dtype=scores.dtype)


def _ranking_loss_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, unit = output
    ctx.mark_non_differentiable(unit)
    ctx.save_for_backward(unit, inputs[0])


def _ranking_loss_grad(ctx, grad: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    return _ranking_loss_backward(grad, *ctx.saved_tensors), *[None] * 10


_ranking_loss.register_autograd(_ranking_loss_grad, setup_context=_ranking_loss_setup)


def _split(value: Tensor | float, device: torch.device) -> tuple[Tensor | None, float]:
    """As the custom op takes it: a tensor, or a number."""
    return (to_device(value.detach(), device), 0.0) if isinstance(value, Tensor) else (None, float(value))


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
        total_weight: a number, or [M]: what the weighted sum is divided by; default the sum of `weight`. A pack that
            holds part of a global batch passes the global batch's sum, so that the packs' losses add up to the batch's.
        impl: "auto", "triton" or "reference".

    An edge of weight 0 adds nothing, even where its scores are not finite. The kernels take an index outside of S as a
    score of nan (the reference raises). No second derivative through the kernels.

    Returns:
        A scalar, or [M]; fp32 (fp64 for fp64 scores). 0 where there are no edges or their weights are all 0.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op = "ranking_loss"
    kernels = use_triton(op, impl, scores)
    check(scores.dim() in (1, 2), op, f"scores must be [S] or [M, S], got {tuple(scores.shape)}")
    check(better.dim() == 1 and better.shape == worse.shape, op, "better and worse must be int [E] of one length")
    check(is_index(better, worse), op, "better and worse must be integers, int32 or int64")
    edges = (*scores.shape[:-1], len(better))
    for name, value in (("margin", margin), ("target", target), ("weight", weight)):
        fits = not isinstance(value, Tensor) or value.shape in ((), edges[-1:], edges)
        check(fits, op, f"{name} must be a number, [E] or [M, E]")
    if isinstance(total_weight, Tensor):
        one = total_weight.numel() == 1
        check(one or total_weight.shape == edges[:-1], op, "total_weight must be a number or [M]")
        total_weight = total_weight.reshape(()) if one else total_weight
    weight = 1.0 if weight is None else weight
    if kernels:
        total = None
        if isinstance(total_weight, Tensor):
            total = to_device(total_weight.detach(), scores.device)
        elif total_weight is not None:
            total = torch.full((), total_weight, dtype=maths_dtype(scores), device=scores.device)
        values = [x for value in (margin, target, weight) for x in _split(value, scores.device)]
        rows = scores if scores.dim() == 2 else scores[None]
        losses, _ = _ranking_loss(rows, better, worse, *values, float(center), total)
        return losses if scores.dim() == 2 else losses.squeeze(0)
    scores = scores.to(maths_dtype(scores))
    # Data often come as fp64; the scores alone set the precision.
    margin, target, weight = (
        x.detach().to(scores.dtype) if isinstance(x, Tensor) else x for x in (margin, target, weight)
    )
    return reference.ranking_loss(scores, better, worse, margin, target, weight, center, total_weight)
