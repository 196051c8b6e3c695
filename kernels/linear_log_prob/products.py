"""Matrix products that sum in wider numbers than their operands'."""

import torch
from torch import Tensor

SLICE_BYTES = 1 << 26  # of a product that exists only to be added
TABLE_ROWS = 1024


def wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in `dtype`, which is the operands' or wider, without rounding in between."""
    if a.dtype == dtype:
        return torch.mm(a, b)
    # The CPU has no product of narrow operands with a wide result; the widened one is the same.
    return torch.mm(a, b, out_dtype=dtype) if a.is_cuda else torch.mm(a.to(dtype), b.to(dtype))


class TableProduct:
    """hidden [N, d] @ table [V, d]^T in a dtype that is theirs or wider, without gradients, for calls with one table:
    a CPU, which has no product of narrow operands with a wide result, widens it in the first of them."""

    def __init__(self) -> None:
        self._wide: Tensor | None = None

    def __call__(self, hidden: Tensor, table: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The product.

        Args:
            out: [N, V] to write to, on a CPU; memory of this size is new otherwise, which takes long there.
        """
        if hidden.is_cuda:
            return wide_product(hidden, table.t(), dtype)
        if table.dtype != dtype:
            self._wide = table.to(dtype) if self._wide is None else self._wide
            hidden, table = hidden.to(dtype), self._wide
        if out is None:
            out = hidden.new_empty(len(hidden), len(table))
        # A CPU's product of few rows and a large table is faster in slices, which stay in its caches.
        for rows, columns in zip(table.split(TABLE_ROWS), out.split(TABLE_ROWS, dim=1), strict=True):
            torch.mm(hidden, rows.t(), out=columns)
        return out


def add_product(total: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """total += scale * a @ b in total's dtype, in place and with no second matrix of its size."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, alpha=scale)
        return
    if a.is_cuda:  # read and written once, by the product itself
        torch.addmm(total, a, b, out_dtype=total.dtype, alpha=scale, out=total)
        return
    step = max(1, SLICE_BYTES // (total.shape[1] * total.element_size())) if total.shape[1] else 1
    for start in range(0, len(total), step):
        rows = slice(start, start + step)
        total[rows].add_(wide_product(a[rows], b, total.dtype), alpha=scale)
