"""The Triton kernel of RoPE, forward and backward, and its launchers."""

import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.launch import cdiv, launch, maths, next_power_of_2, row_block, row_warps

Heads = tuple[Tensor, Tensor, Tensor]

TILE = 2048  # pairs of a program's tokens, for the most heads of q, k and v


@triton.jit
def _rotate(
    x_ptr, out_ptr, token, tokens, cos, sin, x_token, x_head, out_token, out_head,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """The heads of tokens [N]: turned by cos, sin [N, C], or copied."""
    token = token[:, None, None]
    head = tl.arange(0, BLOCK).to(tl.int64)[None, :, None]  # heads may lie a whole sequence apart
    column = tl.arange(0, cos.shape[1])[None, None, :]
    mask = (token < tokens) & (head < HEADS) & (column < HALF)  # [N, H, C]
    at = x_ptr + token * x_token + head * x_head + column
    first, second = tl.load(at, mask, 0.0), tl.load(at + HALF, mask, 0.0)
    if TURN:
        a, b = first.to(MATHS), second.to(MATHS)
        first = a * cos[:, None, :] - b * sin[:, None, :]
        second = b * cos[:, None, :] + a * sin[:, None, :]
    out = out_ptr + token * out_token + head * out_head + column
    tl.store(out, first, mask)
    tl.store(out + HALF, second, mask)


@triton.jit(do_not_specialize=["tokens", "inverse"])
def rope_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, q_out_ptr, k_out_ptr, v_out_ptr, tokens, inverse,
    q_token, q_head, k_token, k_head, v_token, v_head,
    q_out_token, q_out_head, k_out_token, k_out_head, v_out_token, v_out_head,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, V_HEADS: tl.constexpr, HALF: tl.constexpr,
    Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, V_BLOCK: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    MATHS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)  # [N]
    column = tl.arange(0, COLUMNS)  # [C]
    mask = (token < tokens)[:, None] & (column < HALF)[None, :]
    at = tables_ptr + token[:, None] * HALF + column[None, :]
    cos = tl.load(at, mask, 0.0)
    sin = tl.load(at + tokens.to(tl.int64) * HALF, mask, 0.0)
    sin = tl.where(inverse != 0, -sin, sin)  # of the run: compiled in, each form would be compiled twice
    if Q_HEADS > 0:
        _rotate(q_ptr, q_out_ptr, token, tokens, cos, sin, q_token, q_head, q_out_token, q_out_head,
                Q_HEADS, HALF, Q_BLOCK, True, MATHS)  # fmt: skip
    if K_HEADS > 0:
        _rotate(k_ptr, k_out_ptr, token, tokens, cos, sin, k_token, k_head, k_out_token, k_out_head,
                K_HEADS, HALF, K_BLOCK, True, MATHS)  # fmt: skip
    if V_HEADS > 0:
        _rotate(v_ptr, v_out_ptr, token, tokens, cos, sin, v_token, v_head, v_out_token, v_out_head,
                V_HEADS, HALF, V_BLOCK, False, MATHS)  # fmt: skip


def _whole(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(x: Heads, out: Heads, tables: Tensor, *, inverse: bool) -> None:
    """Turn q and k of x into out, and copy v; each [T, heads, D] of any strides.

    By tables, because tl.sin and tl.cos are software routines on NVIDIA: exact also for the large angles of late
    positions, but long, and through local memory there. A token's tables are small beside its heads.
    """
    q, k, v = (_whole(t) for t in x)
    half = q.shape[2] // 2
    columns = next_power_of_2(max(half, 1))
    heads = (q.shape[1], k.shape[1], v.shape[1])
    blocks = [next_power_of_2(max(h, 1)) for h in heads]
    # Few heads share a program with those of other tokens.
    tokens, _ = row_block(max(blocks) * columns, TILE)
    launch(
        rope_kernel, (cdiv(len(q), tokens),), q, k, v, tables.contiguous(), *out, len(q), int(inverse),
        *[step for t in (q, k, v, *out) for step in t.stride()[:2]],
        Q_HEADS=heads[0], K_HEADS=heads[1], V_HEADS=heads[2], HALF=half,
        Q_BLOCK=blocks[0], K_BLOCK=blocks[1], V_BLOCK=blocks[2], TOKENS=tokens, COLUMNS=columns,
        MATHS=maths(q), num_warps=row_warps(tokens * max(blocks) * columns),
    )  # fmt: skip


def rope(q: Tensor, k: Tensor, tables: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D] and k [T, Hkv, D] turned, or turned back: the backward of a rotation is the inverse one."""
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    _launch((q, k, k[:, :0]), (q_out, k_out, k_out[:, :0]), tables, inverse=inverse)
    return q_out, k_out


def _heads(qkv: Tensor, heads: int, kv_heads: int, head_dim: int) -> Heads:
    """Views of q, k and v in qkv, whose rows are whole."""
    parts = qkv.view(len(qkv), heads + 2 * kv_heads, head_dim)
    q, k, v = parts.split_with_sizes((heads, kv_heads, kv_heads), 1)
    return q, k, v


def split_rope_fwd(qkv: Tensor, tables: Tensor, heads: int, kv_heads: int, head_dim: int) -> Heads:
    """qkv [T, (heads + 2 kv_heads) head_dim] -> q and k turned, and v."""
    x = _heads(_whole(qkv), heads, kv_heads, head_dim)
    q, k, v = (t.new_empty(t.shape) for t in x)
    _launch(x, (q, k, v), tables, inverse=False)
    return q, k, v


def split_rope_bwd(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, tables: Tensor) -> Tensor:
    """The gradient of qkv, written where its parts lie."""
    tokens, heads, head_dim = grad_q.shape
    kv_heads = grad_k.shape[1]
    grad = grad_q.new_empty(tokens, (heads + 2 * kv_heads) * head_dim)
    _launch((grad_q, grad_k, grad_v), _heads(grad, heads, kv_heads, head_dim), tables, inverse=True)
    return grad
