"""Triton kernel of the swapped prediction loss and its launchers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import maths_dtype
from rmfast.kernels.launch import cdiv, launch, maths
from rmfast.kernels.normalize import normalize_bwd, normalize_fwd
from rmfast.kernels.sinkhorn.tiles import row_tile
from rmfast.kernels.sinkhorn.triton import add_exp, column_potentials


@triton.jit(do_not_specialize=["rows"])
def swapped_kernel(
    scores_ptr, scalars_ptr, codes_s_ptr, codes_t_ptr, g_ptr, loss_ptr, rows, columns,
    GIVEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    """Losses of rows; the scores [2, rows, columns] are overwritten by their gradients.

    Codes are the given ones, or else those of the scores with the potentials g [2, columns].
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    epsilon, temperature = tl.load(scalars_ptr), tl.load(scalars_ptr + 1)
    lead = row.to(tl.int64)[:, None] * columns
    other_ptr = scores_ptr + rows.to(tl.int64) * columns  # of the second view
    low = tl.full((ROWS,), -1e30, MATHS)
    none = tl.zeros((ROWS,), MATHS)
    top_s, top_t, code_top_s, code_top_t = low, low, low, low
    total_s, total_t, code_total_s, code_total_t = none, none, none, none
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        place = lead + column[None, :]
        s = tl.load(scores_ptr + place, mask, float("-inf"))
        t = tl.load(other_ptr + place, mask, float("-inf"))
        top_s, total_s = add_exp(top_s, total_s, s / temperature, 1)
        top_t, total_t = add_exp(top_t, total_t, t / temperature, 1)
        if not GIVEN:
            g_s = tl.load(g_ptr + column, column < columns, 0.0)[None, :]
            g_t = tl.load(g_ptr + columns + column, column < columns, 0.0)[None, :]
            code_top_s, code_total_s = add_exp(code_top_s, code_total_s, s / epsilon + g_s, 1)
            code_top_t, code_total_t = add_exp(code_top_t, code_total_t, t / epsilon + g_t, 1)
    mass_s, mass_t = none, none  # sums of the codes: 1, but for rounding and for codes from elsewhere
    if GIVEN:
        for start in range(0, columns, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = (row < rows)[:, None] & (column < columns)[None, :]
            mass_s += tl.sum(tl.load(codes_s_ptr + lead + column[None, :], mask, 0.0).to(MATHS), 1)
            mass_t += tl.sum(tl.load(codes_t_ptr + lead + column[None, :], mask, 0.0).to(MATHS), 1)
    else:
        mass_s += 1.0
        mass_t += 1.0
    loss = none
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        place = lead + column[None, :]
        s = tl.load(scores_ptr + place, mask, 0.0)
        t = tl.load(other_ptr + place, mask, 0.0)
        if GIVEN:
            q_s = tl.load(codes_s_ptr + place, mask, 0.0).to(MATHS)
            q_t = tl.load(codes_t_ptr + place, mask, 0.0).to(MATHS)
        else:
            g_s = tl.load(g_ptr + column, column < columns, 0.0)[None, :]
            g_t = tl.load(g_ptr + columns + column, column < columns, 0.0)[None, :]
            q_s = tl.where(mask, tl.exp(s / epsilon + g_s - code_top_s[:, None]) / code_total_s[:, None], 0.0)
            q_t = tl.where(mask, tl.exp(t / epsilon + g_t - code_top_t[:, None]) / code_total_t[:, None], 0.0)
        s = s / temperature - (top_s + tl.log(total_s))[:, None]  # log p
        t = t / temperature - (top_t + tl.log(total_t))[:, None]
        loss -= tl.sum(q_s * t + q_t * s, 1)
        tl.store(scores_ptr + place, (tl.exp(s) * mass_t[:, None] - q_t) / temperature, mask)
        tl.store(other_ptr + place, (tl.exp(t) * mass_s[:, None] - q_s) / temperature, mask)
    tl.store(loss_ptr + row, loss, row < rows)


def swapped_fwd(
    s: Tensor,
    t: Tensor,
    prototypes: Tensor,
    codes_s: Tensor | None,
    codes_t: Tensor | None,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum of the rows' losses; gradients of the scores [2, B, K]; unit vectors of both views [2 B, d] and of the
    prototypes [K, d]; their lengths, in that order [2 B + K]."""
    dtype, device = maths_dtype(s), s.device
    (rows, width), columns = s.shape, len(prototypes)
    vectors = torch.empty(2 * rows, width, dtype=dtype, device=device)
    centres = torch.empty(columns, width, dtype=dtype, device=device)
    length = torch.empty(2 * rows + columns, dtype=dtype, device=device)
    normalize_fwd(s, length[:rows], vectors[:rows])
    normalize_fwd(t, length[rows : 2 * rows], vectors[rows:])
    normalize_fwd(prototypes, length[2 * rows :], centres)
    scores = torch.mm(vectors, centres.T).view(2, rows, columns)
    scalars = torch.empty(2, dtype=dtype, device=device)
    scalars[0].fill_(epsilon)
    scalars[1].fill_(temperature)
    given = codes_s is not None and codes_t is not None
    g = scalars if given else column_potentials(scores, scalars, iterations)
    codes_s, codes_t = (g if q is None else q.contiguous() for q in (codes_s, codes_t))
    loss = torch.empty(rows, dtype=dtype, device=device)
    # The scores are overwritten in place, so no two threads may hold the same one: no more threads than elements.
    tile, block, warps = row_tile(scores)
    launch(
        swapped_kernel, (cdiv(rows, tile),), scores, scalars, codes_s, codes_t, g, loss, rows, columns,
        GIVEN=given, ROWS=tile, COLUMNS=block, MATHS=maths(s), num_warps=min(warps, tile * block // 32),
    )  # fmt: skip
    return loss.sum(), scores, vectors, centres, length


def swapped_bwd(
    grad: Tensor, s: Tensor, t: Tensor, prototypes: Tensor, scores: Tensor, vectors: Tensor, centres: Tensor,
    length: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of s, t and the prototypes; `grad` is that of the sum, `scores` their gradients from the forward."""
    rows = len(s)
    both = scores.view(2 * rows, len(prototypes))
    grad_vectors = torch.mm(both, centres)
    grad_centres = torch.mm(both.T, vectors)
    return (
        normalize_bwd(grad_vectors[:rows], grad, s, length[:rows], divided=False),
        normalize_bwd(grad_vectors[rows:], grad, t, length[rows : 2 * rows], divided=False),
        normalize_bwd(grad_centres, grad, prototypes, length[2 * rows :], divided=False),
    )
