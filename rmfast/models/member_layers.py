"""Layers of several models that are computed together: a decoder's layer factory.

M members' weights are one tensor [M, ...], and their tokens follow each other in one stream. A stream holds all
tokens of the members' packs or, in the last layer, those that are read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmfast.kernels import add_rms_norm, rms_norm
from rmfast.models.layers import Linear, NativeLayers, Norm


class Shares:
    """How many rows of a stream each member has. All tokens and those that are read differ in number, for a decoder
    that computes these alone (`Decoder.forward`) has at most half as many: so a stream's length tells which it is."""

    def __init__(self) -> None:
        self._sizes: dict[int, list[int]] = {}

    def set(self, tokens: Sequence[int], read: Sequence[int]) -> None:
        """What the members' packs hold, until it is set again."""
        self._sizes = {sum(read): list(read), sum(tokens): list(tokens)}

    def of(self, stream: Tensor) -> list[int]:
        """Rows of each member, in the order of members."""
        return self._sizes[len(stream)]


class MemberLinear(Linear):
    """Linear layers of M members: weights [M, outputs, inputs]."""

    def __init__(self, members: int, inputs: int, outputs: int, bias: bool, shares: Shares) -> None:
        super().__init__(inputs, outputs, bias)
        for parameter in ("weight", "bias") if bias else ("weight",):
            single = getattr(self, parameter)
            setattr(self, parameter, nn.Parameter(single.new_empty(members, *single.shape)))
        self.shares = shares
        self.scale: Callable[[], Tensor] | None = None

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, start: int = 0) -> Tensor:
        if self.scale is not None:
            weight = weight * self.scale().to(weight.dtype)[:, None]
        product: Tensor = _Products.apply(x, weight, bias, self.shares.of(x))
        return product


class MemberNorm(Norm):
    """RMSNorms of M members: weights [M, width]. `plain`: rows are normalised alone, and a linear layer has the weights
    (see `fold`)."""

    def __init__(self, members: int, width: int, shares: Shares, offset: float = 0.0) -> None:
        super().__init__(width, offset)
        self.weight = nn.Parameter(self.weight.new_empty(members, width))
        self.shares, self.plain = shares, False

    def forward(self, x: Tensor, *, eps: float, impl: str) -> Tensor:
        if self.plain:
            return rms_norm(x, x.new_ones(x.shape[-1]), eps=eps, impl=impl)
        parts = zip(x.split(self.shares.of(x)), self.gain.unbind(), strict=True)
        return torch.cat([rms_norm(part, weight, eps=eps, impl=impl) for part, weight in parts])

    def added(self, branch: Tensor, residual: Tensor, *, eps: float, impl: str) -> tuple[Tensor, Tensor]:
        sizes = self.shares.of(branch)
        parts = zip(branch.split(sizes), residual.split(sizes), self.gain.unbind(), strict=True)
        normed, sums = zip(*(add_rms_norm(*part, eps=eps, impl=impl) for part in parts), strict=True)
        return torch.cat(normed), torch.cat(sums)


class MemberLayers(NativeLayers):
    """Layers of M members, whole on each process."""

    def __init__(self, members: int) -> None:
        self.members, self.shares = members, Shares()

    def column(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return MemberLinear(self.members, inputs, outputs, bias, self.shares)

    def row(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return MemberLinear(self.members, inputs, outputs, bias, self.shares)

    def norm(self, width: int, offset: float = 0.0) -> Norm:
        return MemberNorm(self.members, width, self.shares, offset)

    def head_norm(self, width: int, offset: float = 0.0) -> Norm:
        return MemberNorm(self.members, width, self.shares, offset)


def fold(norm: Norm, linear: Linear) -> None:
    """Let the linear layer behind a norm multiply its weights by the norm's, W (g x) = (W g) x. Where nothing below is
    trained, what it reads then needs no gradient: the norm's comes from that of W g, which is there anyway."""
    assert isinstance(norm, MemberNorm) and isinstance(linear, MemberLinear)
    norm.plain, linear.scale = True, lambda: norm.gain


class _Products(torch.autograd.Function):
    """x W_m^T + b_m of each member's rows: one batched product where all members have as many rows, otherwise one for
    each, written where it belongs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes, ctx.biased = sizes, bias is not None
        out = x.new_empty(len(x), weight.shape[1])
        _multiply(x, weight.mT, out, sizes)
        if bias is not None:
            for part, added in zip(out.split(sizes), bias, strict=True):
                part += added
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad, sizes = grads[0].contiguous(), ctx.sizes
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x)
            _multiply(grad, weight, grad_x, sizes)
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        if len(set(sizes)) == 1:
            torch.bmm(_members(grad, sizes).mT, _members(x, sizes), out=grad_weight)
        else:
            for into, above, below in zip(grad_weight, grad.split(sizes), x.split(sizes), strict=True):
                torch.mm(above.T, below, out=into)
        grad_bias = torch.stack([part.sum(0) for part in grad.split(sizes)]) if ctx.biased else None
        return grad_x, grad_weight, grad_bias, None


def _multiply(x: Tensor, matrices: Tensor, out: Tensor, sizes: list[int]) -> None:
    """Each member's rows of x times its matrix [M, i, o]."""
    if len(set(sizes)) == 1:
        torch.bmm(_members(x, sizes), matrices, out=_members(out, sizes))
        return
    for into, rows, matrix in zip(out.split(sizes), x.split(sizes), matrices, strict=True):
        torch.mm(rows, matrix, out=into)


def _members(stream: Tensor, sizes: list[int]) -> Tensor:
    """[M, rows, width] of members that have as many rows."""
    return stream.view(len(sizes), sizes[0], stream.shape[1])
