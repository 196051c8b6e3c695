"""Weights in the dtype that matrix products read them in, made once for all packs of a call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmfast.kernels.multi_tensor import restore_

_COPY = "compute_copy"  # attribute of a weight while a copy is read in its place


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the dtype that a product reads: its copy within `Copies`, otherwise cast here."""
    copy: Tensor | None = getattr(weight, _COPY, None)
    return weight.to(dtype) if copy is None or copy.dtype != dtype else _Copy.apply(weight, copy)


class _Copy(torch.autograd.Function):
    """A weight's copy as a function of the weight.

    Each use makes a node, though one could serve all: autograd runs the newest node first, so that an old one would
    keep its gradient until everything else is done.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


class Copies:
    """Copies of some weights in `dtype`; weights that have it already get none.

    A context manager: entering casts all weights, and inside, `cast` gives the copies. Their gradients arrive at the
    weights, as those of a cast do, and are added up there. Outside there is nothing that could be out of date. The
    memory stays, and with it the addresses that a CUDA graph reads.
    """

    def __init__(self, weights: Sequence[nn.Parameter], dtype: torch.dtype) -> None:
        self.weights = [weight for weight in weights if weight.dtype != dtype]
        self.copies = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in self.weights]

    def __enter__(self) -> None:
        restore_(self.copies, self.weights)
        for weight, copy in zip(self.weights, self.copies, strict=True):
            setattr(weight, _COPY, copy)

    def __exit__(self, *_error: object) -> None:
        for weight in self.weights:
            delattr(weight, _COPY)
