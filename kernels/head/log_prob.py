"""Log-probability and entropy of a linear layer's softmax, in chunks of rows: the full logits never exist."""

import torch
from torch import Tensor

from rmfast.kernels.common import check, check_impl, maths_dtype

CHUNK_LOGITS = 1 << 24  # 64 MiB of fp32 logits at a time


def _chunks(rows: int, vocabulary: int) -> range:
    return range(0, rows, max(1, CHUNK_LOGITS // vocabulary))


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        dtype = maths_dtype(hidden)
        log_z = hidden.new_empty(len(hidden), dtype=dtype)
        log_prob, entropy = torch.empty_like(log_z), torch.empty_like(log_z)
        span = _chunks(len(hidden), len(weight))
        for i in span:
            rows = slice(i, i + span.step)
            logits = (hidden[rows] @ weight.T).to(dtype) / temperature
            log_z[rows] = logits.logsumexp(-1)
            log_prob[rows] = logits.gather(-1, target[rows, None])[:, 0] - log_z[rows]
            p = (logits - log_z[rows, None]).exp_()
            # H = log Z - E[logit]; a logit of -inf has probability 0 and adds nothing.
            entropy[rows] = log_z[rows] - torch.where(p == 0, 0, p * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, target, log_z, entropy)
        ctx.temperature = temperature
        return log_prob, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_log_prob: Tensor, grad_entropy: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[no-untyped-def]
        hidden, weight, target, log_z, entropy = ctx.saved_tensors
        dtype = log_z.dtype
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=dtype)
        span = _chunks(len(hidden), len(weight))
        for i in span:
            rows = slice(i, i + span.step)
            log_p = (hidden[rows] @ weight.T).to(dtype) / ctx.temperature - log_z[rows, None]
            p = log_p.exp()
            # d log p_y = 1_y - p; dH = -p (log p + H); both in the logits, then / temperature.
            surprise = torch.where(p == 0, 0, p * (log_p + entropy[rows, None]))
            grad = -grad_log_prob[rows, None] * p - grad_entropy[rows, None] * surprise
            grad.scatter_add_(-1, target[rows, None], grad_log_prob[rows, None])
            grad /= ctx.temperature
            grad_hidden[rows] = grad.to(hidden.dtype) @ weight
            grad_weight += (grad.to(hidden.dtype).T @ hidden[rows]).to(dtype)
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def linear_log_prob(
    hidden: Tensor, weight: Tensor, target: Tensor, *, temperature: float = 1.0, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Log-probability of `target` and entropy, under softmax(hidden weight^T / temperature). Differentiable.

    Args:
        hidden: [N, d].
        weight: [V, d], hidden's dtype.
        target: int [N], in 0..V-1.
        temperature: > 0.
        impl: "auto" or "reference".

    Returns:
        Log-probability [N] and entropy [N], in nats, fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes or dtypes that do not fit together, or a temperature that is not positive.
    """
    op = "linear_log_prob"
    check_impl(op, impl)
    check(hidden.dim() == 2 and weight.dim() == 2, op, "hidden must be [N, d] and weight [V, d]")
    check(len(weight) > 0, op, "weight needs at least one row")
    check(hidden.shape[1] == weight.shape[1], op, f"widths differ: {hidden.shape[1]} and {weight.shape[1]}")
    check(hidden.dtype == weight.dtype, op, f"dtypes differ: {hidden.dtype} and {weight.dtype}")
    check(target.shape == hidden.shape[:1], op, f"target must be [{len(hidden)}], got {tuple(target.shape)}")
    check(temperature > 0, op, f"temperature must be positive, got {temperature}")
    return _LinearLogProb.apply(hidden, weight, target.long(), temperature)
