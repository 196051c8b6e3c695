"""InfoNCE in plain torch: chunks of rows of similarities, made once for the loss and again for the gradient."""

import torch
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.linear_log_prob.reference import chunk_rows

CHUNK_BYTES = 1 << 26  # of similarities at a time


def _chunk(rows: int, columns: int, dtype: torch.dtype) -> int:
    return chunk_rows(rows, columns, dtype.itemsize, CHUNK_BYTES)


def _normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / max(|x|, 1e-12) and that length, by rows."""
    x = x.to(maths_dtype(x))
    length = torch.linalg.vector_norm(x, dim=1).clamp_min(1e-12)
    return x / length[:, None], length


def _normalize_grad(grad: Tensor, normed: Tensor, length: Tensor) -> Tensor:
    """Gradient of x from that of `normed`; a clamped length is a constant."""
    along = torch.where(length > 1e-12, (normed * grad).sum(1), 0)
    return (grad - normed * along[:, None]) / length[:, None]


def info_nce_fwd(
    queries: Tensor, keys: Tensor, positive: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the queries' losses; log-sum-exp of each query's scaled similarities; lengths of queries and of keys."""
    q, query_length = _normalize(queries)
    k, key_length = _normalize(keys)
    q /= temperature
    lse, chosen = torch.empty_like(query_length), torch.empty_like(query_length)
    step = _chunk(len(q), len(k), q.dtype)
    for start in range(0, len(q), step):
        rows = slice(start, start + step)
        s = q[rows] @ k.T
        lse[rows] = s.logsumexp(1)
        chosen[rows] = s.gather(1, positive[rows, None])[:, 0]
    return (lse - chosen).sum(), lse, query_length, key_length


def info_nce_bwd(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    positive: Tensor,
    lse: Tensor,
    query_length: Tensor,
    key_length: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys; `grad` is that of the sum."""
    q = queries.to(lse.dtype) / query_length[:, None]
    k = keys.to(lse.dtype) / key_length[:, None]
    grad_q, grad_k = torch.empty_like(q), torch.zeros_like(k)
    step = _chunk(len(q), len(k), q.dtype)
    for start in range(0, len(q), step):
        rows = slice(start, start + step)
        p = (q[rows] / temperature @ k.T).sub_(lse[rows, None]).exp_()
        p.scatter_add_(1, positive[rows, None], -torch.ones_like(lse[rows, None]))
        torch.mm(p, k, out=grad_q[rows])
        grad_k.addmm_(p.T, q[rows])
    scale = grad / temperature
    grad_queries = _normalize_grad(grad_q, q, query_length) * scale
    grad_keys = _normalize_grad(grad_k, k, key_length) * scale
    return grad_queries.to(queries.dtype), grad_keys.to(keys.dtype)
