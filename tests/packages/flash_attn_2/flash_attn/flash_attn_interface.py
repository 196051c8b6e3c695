"""The calls below flash_attn's autograd function, with the signatures of 2.7.0."""

import torch

from tests.kernels.dense import dense_backward, dense_forward


def _flash_attn_varlen_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    return_softmax: bool = False,
    block_table: torch.Tensor | None = None,
    leftpad_k: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    assert dropout_p == softcap == 0.0 and window_size_left == window_size_right == -1 and not return_softmax
    assert alibi_slopes is block_table is leftpad_k is seqused_k is None
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, softmax_lse = dense_forward(q, k, v, *lengths, causal, softmax_scale)
    return out, softmax_lse, torch.empty(0), torch.empty(2, dtype=torch.int64)


def _flash_attn_varlen_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    softmax_lse: torch.Tensor,
    dq: torch.Tensor | None,
    dk: torch.Tensor | None,
    dv: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: torch.Tensor | None,
    deterministic: bool,
    rng_state: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradients go into dq, dk and dv; those that are None are lost."""
    assert dropout_p == softcap == 0.0 and window_size_left == window_size_right == -1 and deterministic
    assert alibi_slopes is rng_state is None
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    grads = dense_backward(dout, q, k, v, out, softmax_lse, *lengths, causal, softmax_scale)
    for given, grad in zip((dq, dk, dv), grads, strict=True):
        if given is not None:
            given.copy_(grad)
    return torch.empty_like(softmax_lse)
