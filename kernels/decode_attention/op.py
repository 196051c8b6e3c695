"""Decode attention: checks, dispatch, and the custom ops of the kernels."""

import torch
from torch import Tensor

from rmfast.kernels.common import IMPLEMENTATIONS, check, use_triton, without_autocast
from rmfast.kernels.decode_attention import csrc, reference
from rmfast.kernels.dispatch import custom_op

MAX_HEAD_DIM = 256
CAPPED = "a soft cap on the logits"


@custom_op("rmfast::decode_attention")
def _attend(q: Tensor, prompt_kv: Tensor, own_kv: Tensor, layout: Tensor, scale: float, window: int | None) -> Tensor:
    from rmfast.kernels.decode_attention import triton

    return triton.decode_attention(q, prompt_kv, own_kv, layout, scale, window)


@_attend.register_fake
def _(q, prompt_kv, own_kv, layout, scale, window):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)


@custom_op("rmfast::decode_append", mutates=("own_kv",))
def _append(own_kv: Tensor, layout: Tensor, k: Tensor, v: Tensor) -> None:
    from rmfast.kernels.decode_attention import triton

    triton.append(own_kv, layout, k, v)


@torch.no_grad()
@without_autocast
def decode_attention(
    q: Tensor,
    prompt_kv: Tensor,
    own_kv: Tensor,
    layout: Tensor,
    *,
    append: tuple[Tensor, Tensor] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention of each row's last token onto its prompt and its own tokens. No gradient.

    A row's sequence is its prompt and then its own tokens, and its query belongs to the last of them. Adjacent rows
    with the same prompt read its keys and values once (cascade attention). The layout is data: nothing waits for it on
    a GPU, where the same shapes always start the same kernels.

    Args:
        q: [R, Hq, D], one query a row.
        prompt_kv: [2, P, Hkv, D], keys and values of prompts; Hkv divides Hq. May be the same tensor as `own_kv`.
        own_kv: [2, C, Hkv, D], a pool of the rows' own tokens. Of both pools the last two dimensions are contiguous.
        layout: int32 [4, R]: begin and end (exclusive) of each row's prompt in `prompt_kv`, and of its own tokens in
            `own_kv`, the current one included. Either range may be empty. One beyond its pool is an error of the caller
            that the Triton kernels do not see.
        append: keys and values [R, Hkv, D] of the current tokens. They are written to `own_kv` at own end - 1 first,
            except of rows whose own range is empty; no other row's range may hold that place.
        scale: of the logits, positive; default D ** -0.5.
        window: a query sees the `window` last keys of its sequence.
        softcap: logits become softcap tanh(logits / softcap); in the reference alone.
        impl: "auto", "triton", "csrc" or "reference". "csrc" is the compiled library's, for fp32 on the CPU; there
            "auto" takes it where it was built.

    Returns:
        [R, Hq, D] in q's dtype; 0 for a row whose ranges are both empty.

    Raises:
        ValueError: shapes, dtypes or options that do not fit together, or that `impl` cannot take.
    """
    op = "decode_attention"
    _require(q.dim() == 3 and q.is_floating_point(), "q", q, "floating point", "R", "Hq", "D")
    rows, heads, dim = q.shape
    check(dim > 0, op, "head_dim must be above 0")
    for name, pool in (("prompt_kv", prompt_kv), ("own_kv", own_kv)):
        fits = pool.dim() == 4 and pool.shape[0] == 2 and pool.shape[3] == dim and pool.dtype == q.dtype
        _require(fits, name, pool, q.dtype, 2, "tokens", "Hkv", dim)
        whole = not pool.numel() or pool.stride()[2:] == (dim, 1)
        check(whole, op, f"the last two dimensions of {name} must be contiguous")
    kv_heads = own_kv.shape[2]
    check(prompt_kv.shape[2] == kv_heads, op, lambda: f"{prompt_kv.shape[2]} heads in prompt_kv, {kv_heads} in own_kv")
    divides = kv_heads > 0 and heads % kv_heads == 0
    check(divides, op, lambda: f"{kv_heads} key heads do not divide {heads} query heads")
    _require(layout.shape == (4, rows) and layout.dtype == torch.int32, "layout", layout, torch.int32, 4, rows)
    for name, x in zip(("k", "v"), append or (), strict=bool(append)):
        fits = x.shape == (rows, kv_heads, dim) and x.dtype == q.dtype
        _require(fits, f"append's {name}", x, q.dtype, rows, kv_heads, dim)
    tensors = (prompt_kv, own_kv, layout, *(append or ()))
    check(all(x.device == q.device for x in tensors), op, "tensors must be on one device")
    check(window is None or 0 < window < 2**31, op, lambda: f"window must be positive and below 2^31, got {window}")
    check(scale is None or scale > 0, op, lambda: f"scale must be positive, got {scale}")
    check(softcap is None or softcap > 0, op, lambda: f"softcap must be positive, got {softcap}")
    scale = dim**-0.5 if scale is None else scale
    known = (*IMPLEMENTATIONS, "csrc")
    check(impl in known, op, lambda: f"impl must be one of {', '.join(known)}, got {impl!r}")
    if impl == "csrc" or (impl == "auto" and q.device.type == "cpu"):
        missing = csrc.refusal(q) if softcap is None else CAPPED
        if missing is None:
            return csrc.decode_attention(q, prompt_kv, own_kv, layout, append, scale, window)
        check(impl == "auto", op, lambda: f"impl='csrc' is not possible: {missing}")
    refusal = f"head_dim {dim} is above {MAX_HEAD_DIM}" if dim > MAX_HEAD_DIM else None
    refusal = refusal if softcap is None else CAPPED
    if use_triton(op, impl, q, refusal=refusal):
        if append is not None:
            _append(own_kv, layout, *append)
        return _attend(q, prompt_kv, own_kv, layout, scale, window)
    if append is not None:
        reference.append(own_kv, layout, *append)
    return reference.decode_attention(q, prompt_kv, own_kv, layout, scale, window, softcap)


def _require(fits: bool, name: str, x: Tensor, dtype: object, *shape: object) -> None:
    check(
        fits,
        "decode_attention",
        lambda: f"{name} must be {dtype} [{', '.join(map(str, shape))}], got {x.dtype} {list(x.shape)}",
    )
