"""Shared-prefix attention: checks, dispatch, and the custom ops of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.common import IMPLEMENTATIONS, check, maths_dtype, use_triton
from rmfast.kernels.dispatch import custom_op
from rmfast.kernels.prefix_attention import flash, reference

MAX_HEAD_DIM = 256


@custom_op("rmfast::prefix_attention")
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    rows: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    from rmfast.kernels.prefix_attention import triton

    return triton.prefix_attention_fwd(q, k, v, layout, rows, scale, window, softcap)


@_attend.register_fake
def _(q, k, v, layout, rows, scale, window, softcap):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=maths_dtype(q))


@custom_op("rmfast::prefix_attention_backward")
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: Tensor,
    rows: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from rmfast.kernels.prefix_attention import triton

    return triton.prefix_attention_bwd(grad, q, k, v, out, lse, layout, rows, scale, window, softcap)


@_attend_backward.register_fake
def _(grad, q, k, v, out, lse, layout, rows, scale, window, softcap):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, layout, rows, *ctx.options = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, layout, rows)


def _grad(ctx, grad: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    dq, dk, dv = _attend_backward(grad, *ctx.saved_tensors, *ctx.options)
    return dq, dk, dv, None, None, None, None, None


_attend.register_autograd(_grad, setup_context=_setup)


@custom_op("rmfast::flash_prefix_attention")
def _flash(q: Tensor, k: Tensor, v: Tensor, layout: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return flash.flash_attention_fwd(q, k, v, layout, scale)


@_flash.register_fake
def _(q, k, v, layout, scale):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=maths_dtype(q))


@custom_op("rmfast::flash_prefix_attention_backward")
def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, layout: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return flash.flash_attention_bwd(grad, q, k, v, out, lse, layout, scale)


@_flash_backward.register_fake
def _(grad, q, k, v, out, lse, layout, scale):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _flash_setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, layout, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, layout)


def _flash_grad(ctx, grad: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    dq, dk, dv = _flash_backward(grad, *ctx.saved_tensors, ctx.scale)
    return dq, dk, dv, None, None


_flash.register_autograd(_flash_grad, setup_context=_flash_setup)


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    *,
    rows: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Causal attention in a pack of prompt groups; each response sees its group's prefix and itself. Differentiable.

    Args:
        q: [T, Hq, D], or [S, Hq, D] with `rows`.
        k, v: [T, Hkv, D]; Hkv divides Hq (grouped-query attention).
        layout: int32 [4, T] from `prefix_layout`.
        rows: int [S], the tokens whose queries `q` holds, in any order; default all T of them. One outside 0..T-1 is an
            error of the caller that the kernels do not see.
        scale: of the logits, positive; default D ** -0.5.
        window: a query sees the `window` nearest keys, itself included, counted by position in its own sequence.
        softcap: logits become softcap * tanh(logits / softcap).
        impl: "auto", "triton", "flash" or "reference". "flash" is flash attention (flash_attn's or torch's), called
            twice: CUDA, fp16 or bf16, D a multiple of 8 up to 256, no rows, window or softcap. "auto" never takes it.

    Returns:
        [T, Hq, D] (or [S, Hq, D]) in q's dtype.

    Raises:
        ValueError: shapes, head counts or options that do not fit together, or that `impl` cannot take.
    """
    op = "prefix_attention"
    check(q.dim() == k.dim() == v.dim() == 3, op, "q, k, v must be [tokens, heads, head_dim]")
    check(k.shape == v.shape, op, lambda: f"k {tuple(k.shape)} and v {tuple(v.shape)} differ")
    check(q.dtype == k.dtype == v.dtype, op, lambda: f"dtypes differ: q {q.dtype}, k {k.dtype}, v {v.dtype}")
    check(k.shape[1] > 0, op, "k and v need at least one head")
    check(q.shape[2] == k.shape[2], op, lambda: f"head_dim of q ({q.shape[2]}) and k ({k.shape[2]}) differ")
    check(q.shape[1] % k.shape[1] == 0, op, lambda: f"{k.shape[1]} key heads do not divide {q.shape[1]} query heads")
    check(layout.shape == (4, len(k)), op, lambda: f"layout must be [4, {len(k)}], got {tuple(layout.shape)}")
    check(layout.dtype == torch.int32, op, lambda: f"layout must be int32, got {layout.dtype}")
    check(len(q) == len(k if rows is None else rows), op, "q must hold one query a token, or one a row of `rows`")
    check(q.shape[2] > 0 and q.is_floating_point(), op, "q, k, v must be floating point, with a head_dim above 0")
    check(window is None or 0 < window < 2**31, op, lambda: f"window must be positive and below 2^31, got {window}")
    check(scale is None or scale > 0, op, lambda: f"scale must be positive, got {scale}")
    indices = rows is None or (rows.dim() == 1 and rows.dtype in (torch.int32, torch.int64))
    check(indices, op, "rows must be one dimension of int32 or int64")
    check(softcap is None or softcap > 0, op, lambda: f"softcap must be positive, got {softcap}")
    scale = q.shape[2] ** -0.5 if scale is None else scale
    engines = (*IMPLEMENTATIONS, "flash")
    check(impl in engines, op, lambda: f"impl must be one of {', '.join(engines)}, got {impl!r}")
    if impl == "flash":
        missing = flash.refusal(q.device, q.dtype, q.shape[2], rows is not None, window, softcap)
        check(missing is None, op, lambda: f"impl='flash' is not possible: {missing}")
        return _flash(q, k, v, layout, scale)[0]
    refusal = f"head_dim {q.shape[2]} is above {MAX_HEAD_DIM}" if q.shape[2] > MAX_HEAD_DIM else None
    if not use_triton(op, impl, q, refusal=refusal):
        # The reference walks over the groups on the host, which a compiled graph cannot.
        attend = reference.dense_attention if torch.compiler.is_compiling() else reference.prefix_attention
        return attend(q, k, v, layout, rows, scale=scale, window=window, softcap=softcap)
    if rows is None:
        return _attend(q, k, v, layout, None, scale, window, softcap)[0]
    order = rows.argsort(stable=True)  # the kernels find the rows of a tile by bisection
    out, _ = _attend(q[order], k, v, layout, rows[order], scale, window, softcap)
    return out[order.argsort()]
