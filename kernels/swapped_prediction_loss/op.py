"""The swapped prediction loss: checks, dispatch, and the custom op of the kernels."""

from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton, without_autocast
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.swapped_prediction_loss import reference


@custom_op("rmfast::swapped_prediction_loss")
@without_autocast
def _swapped(
    s: Tensor,
    t: Tensor,
    prototypes: Tensor,
    codes_s: Tensor | None,
    codes_t: Tensor | None,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from rmfast.kernels.swapped_prediction_loss import triton

    return triton.swapped_fwd(s, t, prototypes, codes_s, codes_t, temperature, epsilon, iterations)


@_swapped.register_fake
def _(
    s: Tensor,
    t: Tensor,
    prototypes: Tensor,
    codes_s: Tensor | None,
    codes_t: Tensor | None,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (rows, width), columns = s.shape, len(prototypes)
    shapes = ((), (2, rows, columns), (2 * rows, width), (columns, width), (2 * rows + columns,))
    total, scores, vectors, centres, length = (s.new_empty(shape, dtype=maths_dtype(s)) for shape in shapes)
    return total, scores, vectors, centres, length


@custom_op("rmfast::swapped_prediction_loss_backward")
@without_autocast
def _swapped_backward(
    grad: Tensor, s: Tensor, t: Tensor, prototypes: Tensor, scores: Tensor, vectors: Tensor, centres: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from rmfast.kernels.swapped_prediction_loss import triton

    return triton.swapped_bwd(grad, s, t, prototypes, scores, vectors, centres, length)


@_swapped_backward.register_fake
def _(
    grad: Tensor, s: Tensor, t: Tensor, prototypes: Tensor, scores: Tensor, vectors: Tensor, centres: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return s.new_empty(s.shape), t.new_empty(t.shape), prototypes.new_empty(prototypes.shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _grad(ctx, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
    return *_swapped_backward(grad, *ctx.saved_tensors), None, None, None, None, None


_swapped.register_autograd(_grad, setup_context=_setup)


@without_autocast
def swapped_prediction_loss(
    s: Tensor,
    t: Tensor,
    prototypes: Tensor,
    *,
    temperature: float,
    epsilon: float,
    iterations: int,
    codes: tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Tensor:
    """Mean over the batch of l(t, q_s) + l(s, q_t). Differentiable in s, t and prototypes.

    All vectors are L2-normalised first; l(x, q) = -sum_k q_k log softmax(x . c / temperature)_k; the codes q of a view
    are `sinkhorn` of its own cosines with the prototypes and constants for the gradient. Source: Secrets of RLHF Part
    II, equations 7 and 8, after Caron et al. 2020 (SwAV).

    Args:
        s, t: [B, d], two views of the same things.
        prototypes: [K, d]. All three of one dtype.
        temperature: > 0.
        epsilon, iterations: of `sinkhorn`.
        codes: (q_s, q_t), each [B, K], where the batch is only a part of what they are made from (other ranks, a
            queue); epsilon and iterations are then not used.
        impl: "auto", "triton" or "reference".

    Returns:
        A scalar, fp32 (fp64 for fp64 input). 0 where the batch is empty.

    Raises:
        ValueError: shapes or dtypes that do not fit together, or numbers out of range.
    """
    op = "swapped_prediction_loss"
    check(s.dim() == 2 and s.shape == t.shape, op, f"s and t must be [B, d], got {tuple(s.shape)}, {tuple(t.shape)}")
    fits = prototypes.dim() == 2 and len(prototypes) > 0 and prototypes.shape[1] == s.shape[1] > 0
    check(fits, op, f"prototypes must be [K, {s.shape[1]}], got {tuple(prototypes.shape)}")
    check(s.dtype == t.dtype == prototypes.dtype, op, f"dtypes differ: {s.dtype}, {t.dtype}, {prototypes.dtype}")
    check(temperature > 0, op, "temperature must be positive")
    check(epsilon > 0, op, "epsilon must be positive")
    check(iterations >= 0, op, f"iterations must not be negative, got {iterations}")
    dtype = maths_dtype(s)
    if codes is not None:
        shape = (len(s), len(prototypes))
        check(len(codes) == 2 and all(q.shape == shape for q in codes), op, f"codes must be two of {shape}")
        codes = codes[0].detach().to(dtype), codes[1].detach().to(dtype)
    if use_triton(op, impl, s):
        total = _swapped(s, t, prototypes, *(codes or (None, None)), temperature, epsilon, iterations)[0]
    else:
        s, t, prototypes = s.to(dtype), t.to(dtype), prototypes.to(dtype)
        total = reference.swapped_prediction_loss(s, t, prototypes, temperature, epsilon, iterations, codes)
    return total / max(len(s), 1)
