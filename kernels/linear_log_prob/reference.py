"""Log-probability and entropy of a linear layer's softmax in plain torch: chunks of rows, never the full logits."""

import torch
from torch import Tensor

from rmfast.kernels.common import maths_dtype

CHUNK_BYTES = 1 << 26  # of logits at a time


def chunk_rows(rows: int, columns: int, element_size: int, budget: int) -> int:
    """How many of `rows` fit into `budget` bytes, at least one (the step of a `range`, so also for no rows)."""
    return max(1, min(rows, budget // (columns * element_size)))


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap tanh(logits / softcap), in place."""
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def linear_log_prob_fwd(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: float, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and log of the softmax's denominator, each [N]."""
    dtype = maths_dtype(hidden)
    log_z = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
    log_prob, entropy = torch.empty_like(log_z), torch.empty_like(log_z)
    step = chunk_rows(len(hidden), len(weight), log_z.element_size(), CHUNK_BYTES)
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = capped((hidden[rows] @ weight.T).to(dtype), softcap) / temperature
        log_z[rows] = logits.logsumexp(-1)
        log_prob[rows] = logits.gather(-1, target[rows, None])[:, 0] - log_z[rows]
        log_p = logits.sub_(log_z[rows, None])
        p = log_p.exp()
        # A logit of -inf has probability 0 and adds nothing.
        entropy[rows] = -torch.where(p == 0, 0, p * log_p).sum(-1)
    return log_prob, entropy, log_z


def linear_log_prob_bwd(
    grad_log_prob: Tensor,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    log_z: Tensor,
    entropy: Tensor,
    temperature: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and weight."""
    dtype = log_z.dtype
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=dtype)
    step = chunk_rows(len(hidden), len(weight), log_z.element_size(), CHUNK_BYTES)
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = capped((hidden[rows] @ weight.T).to(dtype), softcap)
        log_p = logits / temperature - log_z[rows, None]
        p = log_p.exp()
        # d log p_y = 1_y - p; dH = -p (log p + H); both in the logits, then / temperature.
        grad = -grad_log_prob[rows, None] * p
        if grad_entropy is not None:
            grad -= grad_entropy[rows, None] * torch.where(p == 0, 0, p * (log_p + entropy[rows, None]))
        grad.scatter_add_(-1, target[rows, None], grad_log_prob[rows, None])
        if softcap is not None:
            grad *= 1 - (logits / softcap).square()  # of tanh, by its value
        grad = (grad / temperature).to(hidden.dtype)
        grad_hidden[rows] = grad @ weight
        grad_weight += (grad.T @ hidden[rows]).to(dtype)
    return grad_hidden, grad_weight.to(weight.dtype)
