"""InfoNCE: checks, dispatch, and the custom op of both ways."""

from typing import Any

import torch
from torch import Tensor

from rmfast.kernels.common import check, maths_dtype, use_triton, without_autocast
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.info_nce import reference

WORTH = 1 << 22  # similarities; with fewer, plain torch is as fast


def _maths(kernels: bool) -> Any:
    if not kernels:
        return reference
    from rmfast.kernels.info_nce import triton

    return triton


@custom_op("rmfast::info_nce")
@without_autocast
def _info_nce(
    queries: Tensor, keys: Tensor, positive: Tensor, temperature: float, kernels: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _maths(kernels).info_nce_fwd(queries, keys, positive, temperature)


@_info_nce.register_fake
def _(
    queries: Tensor, keys: Tensor, positive: Tensor, temperature: float, kernels: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, lse, query_length, key_length = (
        queries.new_empty(shape, dtype=maths_dtype(queries))
        for shape in ((), (len(queries),), (len(queries),), (len(keys),))
    )
    return total, lse, query_length, key_length


@custom_op("rmfast::info_nce_backward")
@without_autocast
def _info_nce_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    lse: Tensor,
    query_length: Tensor,
    key_length: Tensor,
    temperature: float,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    return _maths(kernels).info_nce_bwd(grad, queries, keys, positive, lse, query_length, key_length, temperature)


@_info_nce_backward.register_fake
def _(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    lse: Tensor,
    query_length: Tensor,
    key_length: Tensor,
    temperature: float,
    kernels: bool,
) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    queries, keys, positive, ctx.temperature, ctx.kernels = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(queries, keys, positive, *output[1:])


def _grad(ctx, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
    grads = _info_nce_backward(grad, *ctx.saved_tensors, ctx.temperature, ctx.kernels)
    return *grads, None, None, None


_info_nce.register_autograd(_grad, setup_context=_setup)


@without_autocast
def info_nce(
    queries: Tensor, keys: Tensor, *, temperature: float, positive: Tensor | None = None, impl: str = "auto"
) -> Tensor:
    """Mean over queries of -log softmax_j(cos(q_i, k_j) / temperature) at j = positive_i. Differentiable.

    Both sides are divided by max(length, 1e-12), as `torch.nn.functional.normalize` does: a zero vector has cosine 0
    with all. The similarities exist a tile or a bounded chunk at a time. Source: Secrets of RLHF Part II, equation 9.

    Args:
        queries: [N, d].
        keys: [N', d], queries' dtype.
        temperature: > 0.
        positive: int [N], each query's own key in 0..N'-1; default 0..N-1, which needs N <= N'. One outside is an index
            error in the reference and makes the loss NaN in the kernels.
        impl: "auto", "triton" (not for fp16) or "reference". No second derivative in either.

    Returns:
        A scalar, fp32 (fp64 for fp64 input). 0 where there are no queries.

    Raises:
        ValueError: shapes or dtypes that do not fit together, queries without keys, a temperature that is not positive.
    """
    op = "info_nce"
    check(queries.dim() == 2 and keys.dim() == 2, op, "queries must be [N, d] and keys [N', d]")
    check(queries.shape[1] > 0, op, "vectors need at least one element")
    check(queries.shape[1] == keys.shape[1], op, f"widths differ: {queries.shape[1]} and {keys.shape[1]}")
    check(queries.dtype == keys.dtype, op, f"dtypes differ: {queries.dtype} and {keys.dtype}")
    check(temperature > 0, op, "temperature must be positive")
    check(len(keys) > 0 or len(queries) == 0, op, f"{len(queries)} queries and no keys")
    if positive is None:
        check(len(queries) <= len(keys), op, f"{len(queries)} queries, {len(keys)} keys: positive must be given")
        positive = torch.arange(len(queries), device=queries.device)
    check(positive.shape == queries.shape[:1], op, f"positive must be [{len(queries)}], got {tuple(positive.shape)}")
    check(not positive.is_floating_point(), op, f"positive must be integers, got {positive.dtype}")
    # The kernels' chunks of gradients are in the vectors' dtype, before the division by short lengths: beyond fp16.
    refusal = "gradients of short vectors overflow in fp16" if queries.dtype == torch.float16 else None
    kernels = use_triton(op, impl, queries, refusal=refusal, worth=len(queries) * len(keys) >= WORTH)
    if len(queries) == 0:
        return queries.sum(dtype=maths_dtype(queries)) + keys[:0].sum(dtype=maths_dtype(keys))
    return _info_nce(queries, keys, positive.long(), temperature, kernels)[0] / len(queries)
