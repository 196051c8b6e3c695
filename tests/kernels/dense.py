"""Varlen attention with its log-sum-exp, forward and backward, in plain torch: stands in for CUDA functions."""

import torch
from torch import Tensor


def sequences(starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int, q: Tensor, k: Tensor) -> list[list[slice]]:
    """(queries, keys) of every sequence, after the checks that the CUDA functions make or should."""
    for starts, longest, x in ((starts_q, max_q, q), (starts_k, max_k, k)):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and starts.device == x.device
        assert starts[0] == 0 and starts[-1] == len(x)
        assert max(2, starts.diff().max()) == longest
        assert x.stride(2) == 1 and not any(n * x.element_size() % 16 for n in x.stride()[:2])
        assert x.data_ptr() % 16 == 0
    assert len(starts_q) == len(starts_k) > 1
    return [[slice(*pair) for pair in x.unfold(0, 2, 1).tolist()] for x in (starts_q, starts_k)]


def probabilities(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    logits = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    if causal:
        assert len(q) == len(k)
        logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
    return logits


def dense_forward(q, k, v, starts_q, starts_k, max_q, max_k, causal, scale):  # type: ignore[no-untyped-def]
    out = torch.full_like(q, torch.nan)
    lse = q.new_full((q.shape[1], len(q)), torch.nan, dtype=torch.promote_types(q.dtype, torch.float32))
    for own, seen in zip(*sequences(starts_q, starts_k, max_q, max_k, q, k), strict=True):
        if seen.start == seen.stop:
            out[own], lse[:, own] = 0, torch.inf
            continue
        logits = probabilities(q[own].to(lse.dtype), k[seen].to(lse.dtype), causal, scale)
        lse[:, own] = logits.logsumexp(2)
        values = v[seen].to(lse.dtype).repeat_interleave(q.shape[1] // k.shape[1], 1)
        out[own] = torch.einsum("hqk,khd->qhd", logits.softmax(2), values).to(q.dtype)
    return out, lse


def dense_backward(grad, q, k, v, out, lse, starts_q, starts_k, max_q, max_k, causal, scale):  # type: ignore[no-untyped-def]
    """From the given `out` and `lse`; gradients of queries and keys that meet nobody are garbage."""
    assert grad.is_contiguous() and out.is_contiguous() and lse.is_contiguous() and lse.shape == q.shape[1::-1]
    share = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in (q, k, v))
    for own, seen in zip(*sequences(starts_q, starts_k, max_q, max_k, q, k), strict=True):
        if own.start == own.stop or seen.start == seen.stop:
            continue
        g, mine, keys, values, o = (
            x.to(lse.dtype) for x in (grad[own], q[own], k[seen], v[seen].repeat_interleave(share, 1), out[own])
        )
        p = (probabilities(mine, keys, causal, scale) - lse[:, own, None]).exp()
        delta = (g * o).sum(2).T
        ds = p * (torch.einsum("qhd,khd->hqk", g, values) - delta[..., None]) * scale
        dq[own] = torch.einsum("hqk,khd->qhd", ds, keys.repeat_interleave(share, 1)).to(q.dtype)
        for total, part in ((dk, torch.einsum("hqk,qhd->khd", ds, mine)), (dv, torch.einsum("hqk,qhd->khd", p, g))):
            total[seen] = part.unflatten(1, (k.shape[1], share)).sum(2).to(k.dtype)
    return dq, dk, dv
