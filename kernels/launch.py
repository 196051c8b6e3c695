"""How Triton kernels start: on the device of their tensors, in the interpreter, or into a list for the compiler."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmfast.kernels.common import INTERPRETED, maths_dtype

Capability = tuple[int, int]
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
# Said for every kernel, because Triton's default differs between versions: a product and a sum become one rounding.
OPTIONS = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Launch:
    """A recorded start: what `kernel[grid](*arguments, **options)` would have run."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


_recording: tuple[Capability, list[Launch]] | None = None


@contextlib.contextmanager
def recording(capability: Capability) -> Iterator[list[Launch]]:
    """Collect launches instead of running them, with the choices that a device of that capability would get.

    Launchers then run on CPU tensors of any contents; their results are garbage. For ahead-of-time compilation.
    """
    global _recording
    before = _recording
    launches: list[Launch] = []
    _recording = (capability, launches)
    try:
        yield launches
    finally:
        _recording = before


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Any, **options: Any) -> None:
    """Run `kernel[grid](first, *others, **options)` on the first argument's device; an empty grid runs nothing.

    By `kernel.run`, which is what `kernel[grid]` calls by way of a function made for it.
    """
    options |= OPTIONS
    if _recording is not None:
        _recording[1].append(Launch(kernel, (first, *others), options))
        return
    if 0 in grid:
        return
    device = first.device
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel.run(first, *others, grid=grid, warmup=False, **options)
    else:
        with torch.cuda.device(device):
            kernel.run(first, *others, grid=grid, warmup=False, **options)


def capability(tensor: Tensor) -> Capability:
    """Compute capability of the tensor's device; (0, 0) in the interpreter, where small tiles are cheaper."""
    if _recording is not None:
        return _recording[0]
    return _capability(tensor.device) if tensor.is_cuda else (0, 0)


@functools.cache
def _capability(device: torch.device) -> Capability:
    return torch.cuda.get_device_capability(device)


# Triton's functions of these names take a hundred times as long on the host: they look for constants of a kernel.
def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n > 0."""
    return 1 << (n - 1).bit_length()


def row_warps(block: int) -> int:
    """Warps of a program that holds rows of `block` elements in all."""
    return 4 if block <= 2048 else 8 if block <= 8192 else 16


def row_block(width: int, rows_elements: int = 4096) -> tuple[int, int]:
    """(rows, columns) of a tile of whole rows: columns a power of two >= `width`, small rows share a program."""
    columns = next_power_of_2(max(width, 1))
    return max(1, min(16 if INTERPRETED else 8, rows_elements // columns)), columns


def maths(*tensors: Tensor) -> Any:
    """Triton's name of the dtype that a kernel computes in: fp64 for fp64 inputs, else fp32."""
    return tl.float64 if maths_dtype(*tensors) == torch.float64 else tl.float32


def row_starts(x: Tensor) -> tuple[Tensor, int, int, int]:
    """x [..., d], and (group, outer, inner): row i begins i // group * outer + i % group * inner elements into it, and
    i * outer where group is 0.

    Heads [T, H, d] stay where they are, within wider rows or not; a copy is made where `as_rows` would and this cannot
    help.
    """
    if x.dim() == 3 and x.numel() and x.stride(2) == 1:
        return x, x.shape[1], x.stride(0), x.stride(1)
    rows = as_rows(x)
    return rows, 0, rows.stride(0), 0


def as_rows(x: Tensor) -> Tensor:
    """x [..., d] as [rows, d] whose rows may lie anywhere but are whole; a copy only where strides ask for it."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty(x.shape[:-1].numel(), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()
