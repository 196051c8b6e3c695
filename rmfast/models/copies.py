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

    A context manager: entering casts the weights, and inside, `cast` gives the copies. Their gradients arrive at the
    weights, as those of a cast do, and are added up there. Outside nothing reads a copy. A frozen weight's copy stays
    good until something writes to the weight.

    Each weight has its copy from the beginning to the end, trained or frozen: 2 bytes beside the 4 of an fp32 weight.
    Their addresses stay too, which a CUDA graph reads.
    """

    def __init__(self, weights: Sequence[nn.Parameter], dtype: torch.dtype) -> None:
        self.weights = [weight for weight in weights if weight.dtype != dtype]
        self.copies = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in self.weights]
        self._versions = [-1] * len(self.weights)  # of the weights when they were last cast, as torch counts writes

    def __enter__(self) -> None:
        versions = [weight._version for weight in self.weights]
        # What trains a weight may write past torch's count, so that one is cast in any case.
        old = [i for i, w in enumerate(self.weights) if w.requires_grad or versions[i] != self._versions[i]]
        restore_([self.copies[i] for i in old], [self.weights[i] for i in old])
        self._versions = versions
        for weight, copy in zip(self.weights, self.copies, strict=True):
            setattr(weight, _COPY, copy)

    def __exit__(self, *_error: object) -> None:
        for weight in self.weights:
            delattr(weight, _COPY)
