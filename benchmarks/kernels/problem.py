"""What an op of the benchmarks is: its problem at one size, its named sizes, and the forms that are compiled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Any]
Size = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One op at one size.

    Args:
        inputs: given to every contender in this order; those that require gradients get them.
        call: `call(*inputs, impl=...)` is the public op.
        bytes: least traffic of the forward, and of forward and backward together, if nothing is cached.
        flops: of matrix products, likewise; 0 where there are none.
        rivals: libraries' functions of the same inputs.
    """

    inputs: list[Any]
    call: Call
    bytes: tuple[float, float]
    flops: tuple[float, float] = (0.0, 0.0)
    rivals: dict[str, Call] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """How to make an op's problems: `make(At(device, dtype), **sizes[name])`.

    Args:
        test: its file in tests/kernels.
        sizes: "tiny" is for a CPU, all others are real ones.
        forms: what is compiled (aot.py), enough that all kernels start in every configuration that their launchers can
            choose. Rows are few; widths, head dimensions and dtypes are real, because tiles depend on them.
        alone: compiled too with a gradient of the first output alone.
    """

    test: str
    make: Callable[..., Problem]
    sizes: dict[str, Size]
    forms: list[tuple[torch.dtype, Size]]
    differentiable: bool = True
    alone: bool = False


@dataclass(frozen=True)
class At:
    """Where and in which dtype an op's problem is made."""

    device: torch.device
    dtype: torch.dtype

    def normal(self, *shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_(grad)

    def wide(self, *shape: int, grad: bool = True) -> Tensor:
        """In fp32."""
        return torch.randn(shape, device=self.device).requires_grad_(grad)

    def ones(self, width: int) -> Tensor:
        return torch.ones(width, device=self.device, requires_grad=True)

    def count(self, *bounds: int) -> Tensor:
        return torch.arange(*bounds, device=self.device)


def sizes(names: str, **values: tuple[Any, ...]) -> dict[str, Size]:
    """Sizes by name, each with these parameters."""
    return {name: dict(zip(names.split(), row, strict=True)) for name, row in values.items()}


def forms(names: str, *rows: tuple[Any, ...], **options: Any) -> list[tuple[torch.dtype, Size]]:
    """Forms of (dtype, parameters ...), with options that all share."""
    return [(dtype, dict(zip(names.split(), row, strict=True)) | options) for dtype, *row in rows]
