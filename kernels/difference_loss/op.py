"""The difference loss: checks, dispatch, and the custom op of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton
from rmfast.kernels.difference_loss import reference
from rmfast.kernels.dispatch import custom_op

NORMALISERS = ("k2", "pairs")


@custom_op("rmfast::difference_loss")
def _difference_loss(scores: Tensor, group: Tensor, pairs: bool) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.difference_loss import triton

    return triton.difference_loss_fwd(scores, group, pairs)


@_difference_loss.register_fake
def _(scores: Tensor, group: Tensor, pairs: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = maths_dtype(scores)
    number = scores.new_empty((), dtype=dtype)
    return number, scores.new_empty(scores.shape, dtype=dtype), torch.empty_like(number)


# An op that takes the scores and has no derivative, so that a second one is refused and not silently 0.
@custom_op("rmfast::difference_loss_backward")
def _difference_loss_backward(grad: Tensor, unit: Tensor, inverse: Tensor, scores: Tensor) -> Tensor:
    return (unit * (grad * inverse)).to(scores.dtype)


@_difference_loss_backward.register_fake
def _(grad: Tensor, unit: Tensor, inverse: Tensor, scores: Tensor) -> Tensor:
    return unit.new_empty(unit.shape, dtype=scores.dtype)


def _difference_loss_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, unit, inverse = output
    ctx.mark_non_differentiable(unit, inverse)
    ctx.save_for_backward(unit, inverse, inputs[0])


def _difference_loss_grad(ctx, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
    return _difference_loss_backward(grad, *ctx.saved_tensors), None, None


_difference_loss.register_autograd(_difference_loss_grad, setup_context=_difference_loss_setup)


def difference_loss(scores: Tensor, group: Tensor, *, normaliser: str = "k2", impl: str = "auto") -> Tensor:
    """How far apart the scores of each prompt's samples are, mean over prompts. Differentiable in `scores`.

    Per group of k samples J = (2 / k^2) sum over i < j of sigmoid(|r_i - r_j|); 0 for a group of one. MetaRM raises it.
    Source: Secrets of RLHF Part II, equation 11. The gradient at equal scores is 0.

    Args:
        scores: [S]. group: int [S], the group of each sample: any numbers in any order.
        normaliser: "k2" as in the paper, or "pairs": 2 / (k (k - 1)), the mean over pairs.
        impl: "auto", "triton" or "reference". No second derivative through the kernels.

    No table of all pairs is held: memory is linear in S. The reference walks all S^2 pairs, a chunk at a time.

    Returns:
        A scalar; fp32 (fp64 for fp64 scores). 0 where there are no samples.

    Raises:
        ValueError: shapes that do not fit together, or an unknown normaliser.
    """
    op = "difference_loss"
    check(scores.dim() == 1, op, f"scores must be [S], got {tuple(scores.shape)}")
    check(group.shape == scores.shape, op, f"group must be [{len(scores)}], got {tuple(group.shape)}")
    check(not group.is_floating_point() and group.dtype != torch.bool, op, "group must be integers")
    check(normaliser in NORMALISERS, op, f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}")
    pairs = normaliser == "pairs"
    if use_triton(op, impl, scores):
        return _difference_loss(scores, group, pairs)[0]
    return reference.difference_loss(scores.to(maths_dtype(scores)), group, pairs)
