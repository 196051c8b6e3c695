"""Final norm and reward heads, on the scored rows only: checks, dispatch, and the custom op of the kernels."""

from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton, without_autocast
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.score_head import reference

MAX_WIDTH = 65536  # a row lives in one program's registers
MAX_HEADS = 16


@custom_op("rmfast::score_head")
@without_autocast
def _score_head(hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.score_head import triton

    return triton.score_head_fwd(hidden, norm_weight, head_weight, eps)


@_score_head.register_fake
def _(hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, dtype = hidden.shape[0], maths_dtype(hidden, norm_weight, head_weight)
    return hidden.new_empty((rows, head_weight.shape[0]), dtype=dtype), hidden.new_empty(rows, dtype=dtype)


@custom_op("rmfast::score_head_backward")
@without_autocast
def _score_head_backward(
    grad: Tensor, scores: Tensor, hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.score_head import triton

    return triton.score_head_bwd(grad, scores, hidden, norm_weight, head_weight, rstd)


@_score_head_backward.register_fake
def _(
    grad: Tensor, scores: Tensor, hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_hidden, grad_norm, grad_head = (x.new_empty(x.shape) for x in (hidden, norm_weight, head_weight))
    return grad_hidden, grad_norm, grad_head


def _score_head_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    hidden, norm_weight, head_weight, _ = inputs
    scores, rstd = output
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(scores, hidden, norm_weight, head_weight, rstd)


def _score_head_grad(ctx, grad: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    return *_score_head_backward(grad, *ctx.saved_tensors), None


_score_head.register_autograd(_score_head_grad, setup_context=_score_head_setup)


def _refusal(width: int, heads: int) -> str | None:
    if not 1 <= heads <= MAX_HEADS:
        return f"{heads} heads, not 1 to {MAX_HEADS}"
    return None if 1 <= width <= MAX_WIDTH else f"rows of {width}, not 1 to {MAX_WIDTH}"


@without_autocast
def score_head(hidden: Tensor, norm_weight: Tensor, head_weight: Tensor, *, eps: float, impl: str = "auto") -> Tensor:
    """RMSNorm, then M linear heads without bias. Differentiable in all three tensors.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization, equation 4, and a linear layer.

    Args:
        hidden: [S, d], the last layer's output at the scored tokens, before the final norm.
        norm_weight: [d].
        head_weight: [M, d]; the kernels take up to 16 heads.
        eps: of the norm.
        impl: "auto", "triton" or "reference".

    Returns:
        [S, M] in fp32 (fp64 for fp64 input): bf16 scores would tie where fp32 ones do not.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op = "score_head"
    check(hidden.dim() == 2, op, lambda: f"hidden must be [S, d], got {tuple(hidden.shape)}")
    width = hidden.shape[1]
    check(norm_weight.shape == (width,), op, lambda: f"norm_weight must be [{width}], got {tuple(norm_weight.shape)}")
    check(head_weight.dim() == 2 and head_weight.shape[1] == width, op, lambda: f"head_weight must be [M, {width}]")
    if use_triton(op, impl, hidden, refusal=_refusal(width, len(head_weight))):
        return _score_head(hidden, norm_weight, head_weight, eps)[0]
    dtype = maths_dtype(hidden, norm_weight, head_weight)
    return reference.score_head(hidden.to(dtype), norm_weight.to(dtype), head_weight.to(dtype), eps)
