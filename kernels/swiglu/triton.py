"""Triton kernels of SwiGLU and their launchers."""

import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.launch import as_rows, cdiv, launch, maths, next_power_of_2

TILE = 2048  # elements of gate and of up in a program


@triton.jit
def _place(width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows [R] and columns [C] of a program. Programs that follow each other share rows, and so the memory's pages."""
    across = tl.cdiv(width, COLUMNS)
    row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit(do_not_specialize=["rows"])
def swiglu_fwd_kernel(
    gate_up_ptr, out_ptr, rows, width, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row, column = _place(width, ROWS, COLUMNS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    at = gate_up_ptr + row[:, None] * stride + column[None, :]
    gate = tl.load(at, mask, 0.0).to(MATHS)
    up = tl.load(at + width, mask, 0.0).to(MATHS)
    tl.store(out_ptr + row[:, None] * width + column[None, :], gate / (1.0 + tl.exp(-gate)) * up, mask)


@triton.jit(do_not_specialize=["rows"])
def swiglu_bwd_kernel(
    grad_ptr, gate_up_ptr, grad_gate_up_ptr, rows, width, grad_stride, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, MATHS: tl.constexpr,
):  # fmt: skip
    row, column = _place(width, ROWS, COLUMNS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    at = gate_up_ptr + row[:, None] * stride + column[None, :]
    gate = tl.load(at, mask, 0.0).to(MATHS)
    up = tl.load(at + width, mask, 0.0).to(MATHS)
    grad = tl.load(grad_ptr + row[:, None] * grad_stride + column[None, :], mask, 0.0).to(MATHS)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    out = grad_gate_up_ptr + row[:, None] * (2 * width) + column[None, :]
    tl.store(out, grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask)
    tl.store(out + width, grad * gate * sigmoid, mask)


def _tile(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    columns = min(next_power_of_2(max(width, 1)), 1024)
    tile = TILE // columns
    return (cdiv(rows, tile) * cdiv(width, columns),), {"ROWS": tile, "COLUMNS": columns}


def swiglu_fwd(gate_up: Tensor) -> Tensor:
    """gate_up [..., 2 f] -> silu(gate) * up [..., f]."""
    rows = as_rows(gate_up)
    count, width = len(rows), gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    grid, tile = _tile(count, width)
    launch(swiglu_fwd_kernel, grid, rows, out, count, width, rows.stride(0), **tile, MATHS=maths(gate_up))
    return out


def swiglu_bwd(grad: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient of gate_up, whole; nothing but gate_up itself was saved."""
    rows, grads = as_rows(gate_up), as_rows(grad)
    count, width = grads.shape
    grad_gate_up = gate_up.new_empty(gate_up.shape)
    grid, tile = _tile(count, width)
    launch(
        swiglu_bwd_kernel, grid, grads, rows, grad_gate_up, count, width, grads.stride(0), rows.stride(0),
        **tile, MATHS=maths(gate_up),
    )  # fmt: skip
    return grad_gate_up
