"""Triton kernels over chunks of logits that torch.mm makes, and their launchers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import cdiv, launch, maths
from rmfast.kernels.linear_log_prob.products import add_product
from rmfast.kernels.linear_log_prob.reference import chunk_rows
from rmfast.kernels.linear_log_prob.tiles import tile

CHUNK_BYTES = 1 << 28  # of logits at a time: 1024 rows of 128k in bf16, enough for full-speed matrix products


@triton.jit
def linear_log_prob_fwd_kernel(
    logits_ptr, target_ptr, log_prob_ptr, entropy_ptr, log_z_ptr, vocabulary, BLOCK: tl.constexpr, MATHS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocabulary
    top = tl.full((), float("-inf"), MATHS)
    total = tl.zeros((), MATHS)  # sum of e = exp(logit - top)
    tilt = tl.zeros((), MATHS)  # sum of e (logit - top)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        logit = tl.load(logits_ptr + column, column < vocabulary, float("-inf")).to(MATHS)
        old, top = top, tl.maximum(top, tl.max(logit, 0))
        base = tl.where(top == float("-inf"), 0.0, top)
        fall = tl.maximum(old - base, -1e30)  # finite, for 0 * -inf is nan
        keep = tl.exp(fall)
        e = tl.exp(logit - base)
        tilt = keep * (tilt + total * fall) + tl.sum(tl.where(e == 0, 0.0, e * (logit - base)), 0)
        total = keep * total + tl.sum(e, 0)
    target = tl.load(target_ptr + row)
    log_z = top + tl.log(total)
    # A target that is no row of the weight reads nothing and gives NaN.
    chosen = tl.load(logits_ptr + target, (target >= 0) & (target < vocabulary), float("nan")).to(MATHS)
    tl.store(log_prob_ptr + row, chosen - log_z)
    tl.store(entropy_ptr + row, tl.log(total) - tilt / total)
    tl.store(log_z_ptr + row, log_z)


@triton.jit
def linear_log_prob_bwd_kernel(
    logits_ptr, target_ptr, grad_log_prob_ptr, grad_entropy_ptr, log_z_ptr, entropy_ptr, vocabulary,
    ENTROPY: tl.constexpr, BLOCK: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < vocabulary
    target = tl.load(target_ptr + row)
    grad = tl.load(grad_log_prob_ptr + row, (target >= 0) & (target < vocabulary), float("nan")).to(MATHS)
    place = logits_ptr + row * vocabulary + column
    log_p = tl.load(place, mask, 0.0).to(MATHS) - tl.load(log_z_ptr + row)
    p = tl.exp(log_p)
    grad_logit = tl.where(column == target, grad, 0.0) - grad * p
    if ENTROPY:
        surprise = tl.where(p == 0, 0.0, p * (log_p + tl.load(entropy_ptr + row)))
        grad_logit -= tl.load(grad_entropy_ptr + row).to(MATHS) * surprise
    tl.store(place, grad_logit, mask)


def _chunk(hidden: Tensor, weight: Tensor) -> Tensor:
    """Memory for the logits of a number of rows, a multiple of 128 unless all or fewer fit: matrix products have tiles
    of 128 rows, and every chunk of a vector begins at an aligned address."""
    rows = chunk_rows(len(hidden), len(weight), hidden.element_size(), CHUNK_BYTES)
    if 128 < rows < len(hidden):
        rows -= rows % 128
    return torch.empty(rows, len(weight), dtype=hidden.dtype, device=hidden.device)


def linear_log_prob_fwd(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and log of the softmax's denominator, each [N]."""
    count, vocabulary = len(hidden), len(weight)
    log_z = torch.empty(count, dtype=maths_dtype(hidden), device=hidden.device)
    log_prob, entropy = torch.empty_like(log_z), torch.empty_like(log_z)
    target = target.contiguous()
    chunk = _chunk(hidden, weight)
    block, warps = tile("fwd", hidden, vocabulary)
    for start in range(0, count, len(chunk)):
        rows = slice(start, min(start + len(chunk), count))
        logits = chunk[: rows.stop - start]
        torch.addmm(logits, hidden[rows], weight.T, beta=0, alpha=1 / temperature, out=logits)
        launch(
            linear_log_prob_fwd_kernel, (len(logits),), logits, target[rows], log_prob[rows], entropy[rows],
            log_z[rows], vocabulary, BLOCK=block, MATHS=maths(hidden), num_warps=warps,
        )  # fmt: skip
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
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and weight; the logits are made again, chunk by chunk, and overwritten by theirs."""
    count, vocabulary = len(hidden), len(weight)
    grad_hidden = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    grad_weight = torch.zeros(weight.shape, dtype=log_z.dtype, device=hidden.device)
    grad_log_prob, target = grad_log_prob.contiguous(), target.contiguous()
    tilt = log_z if grad_entropy is None else grad_entropy.contiguous()
    chunk = _chunk(hidden, weight)
    block, warps = tile("bwd", hidden, vocabulary)
    for start in range(0, count, len(chunk)):
        rows = slice(start, min(start + len(chunk), count))
        logits, out = chunk[: rows.stop - start], grad_hidden[rows]
        torch.addmm(logits, hidden[rows], weight.T, beta=0, alpha=1 / temperature, out=logits)
        launch(
            linear_log_prob_bwd_kernel, (len(logits), cdiv(vocabulary, block)), logits, target[rows],
            grad_log_prob[rows], tilt[rows], log_z[rows], entropy[rows], vocabulary,
            ENTROPY=grad_entropy is not None, BLOCK=block, MATHS=maths(hidden), num_warps=warps,
        )  # fmt: skip
        torch.addmm(out, logits, weight, beta=0, alpha=1 / temperature, out=out)
        add_product(grad_weight, logits.T, hidden[rows], 1 / temperature)
    return grad_hidden, grad_weight.to(weight.dtype)
