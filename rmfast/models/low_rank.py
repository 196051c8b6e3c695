"""Linear layers with a low-rank term: y = x W^T + b + s (x A^T) B^T (LoRA, arXiv 2106.09685, equation 3).

A weight of ours may join several of Hugging Face's along its outputs. Each such part has an A and a B, as in PEFT; x
is multiplied by all A at once, and each B adds to its columns of y.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmfast.kernels.dispatch import custom_op
from rmfast.models.copies import cast


@custom_op("rmfast::adapted_linear")
def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, low: Tensor, up: Tensor, places: Sequence[int], scale: float
) -> Tensor:
    """x W^T + b and, in the columns of each adapted part p, scale low_p B_p^T. Differentiable but for W and b.

    An op, so that nothing of y's size is kept or recomputed beside y, and no sum of it is made twice.

    Args:
        x: [T, in]. weight: [out, in], frozen. bias: [out], frozen.
        low: [T, P r], x A^T of all P parts. up: [sum of the parts' outputs, r], their B one below the other.
        places: first and last (exclusive) output of each part: P pairs, one after the other.

    Returns:
        [T, out].
    """
    out = F.linear(x, weight, bias)
    for begin, end, lows, ups in _parts(places, up.shape[1]):
        out[:, begin:end].addmm_(low[:, lows], up[ups].T, alpha=scale)
    return out


def _parts(places: Sequence[int], rank: int) -> list[tuple[int, int, slice, slice]]:
    """Of each part its outputs' begin and end, its columns of `low` and its rows of `up`."""
    found, row = [], 0
    for i, (begin, end) in enumerate(zip(places[::2], places[1::2], strict=True)):
        found.append((begin, end, slice(i * rank, (i + 1) * rank), slice(row, row + end - begin)))
        row += end - begin
    return found


@adapted_linear.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, low: Tensor, up: Tensor, places: Sequence[int], scale: float
) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, _, low, up, ctx.places, ctx.scale = inputs
    ctx.save_for_backward(weight, low, up)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, low, up = ctx.saved_tensors
    grad_low, grad_up = torch.empty_like(low), torch.empty_like(up)
    for begin, end, lows, ups in _parts(ctx.places, up.shape[1]):
        part = grad[:, begin:end]
        torch.mm(part, up[ups], out=grad_low[:, lows])
        torch.mm(part.T, low[:, lows], out=grad_up[ups])
    grad_x = grad @ weight if ctx.needs_input_grad[0] else None
    return grad_x, None, None, grad_low.mul_(ctx.scale), grad_up.mul_(ctx.scale), None, None


adapted_linear.register_autograd(_gradients, setup_context=_setup)


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers of Phi-3, and the targets that each is: adapted where all of them are."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What an adapter is.

    Args:
        targets: linear layers by PEFT's names, of `TARGETS`.
        dropout: probability on what A reads, in training.
        rslora: the scale is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732) in place of alpha / rank.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LowRank(nn.Module):
    """The A and B of one adapter of one linear layer. Parts that are computed together share dropout's mask.

    Args:
        inputs: of the layer.
        places: the outputs (first, last exclusive) of each adapted part, in order.
        columns: where this process has a part of the inputs: the first of them, and how many there are in all; None
            where it has all.

    Attributes:
        a: [P r, in], the parts' A one below the other. b: [sum of their outputs, r], their B.
    """

    def __init__(
        self,
        inputs: int,
        places: Sequence[tuple[int, int]],
        options: LoraOptions,
        columns: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.places, self.options, self.columns = tuple(places), options, columns
        self.a = nn.Parameter(torch.empty(options.rank * len(self.places), inputs))
        self.b = nn.Parameter(torch.empty(sum(end - begin for begin, end in self.places), options.rank))

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, start: int = 0) -> Tensor:
        """The layer's outputs [T, out] from `start` on, of whose rows weight and bias are."""
        stop = start + len(weight)
        # Phi-3's part holds keys and values too, of which a call may ask for some.
        cut = [(max(begin, start), min(end, stop)) for begin, end in self.places]
        held = [i for i, (begin, end) in enumerate(cut) if begin < end]
        if not held:
            return F.linear(x, weight, bias)
        rank = self.options.rank
        sizes = [end - begin for begin, end in self.places]
        a = cast(self.a, x.dtype)[held[0] * rank : (held[-1] + 1) * rank]
        first, last = (sum(sizes[:i]) - self.places[i][0] for i in (held[0], held[-1]))  # of B's rows, less the outputs
        b = cast(self.b, x.dtype)[first + cut[held[0]][0] : last + cut[held[-1]][1]]
        low = F.linear(self._dropped(x), a)
        places = tuple(place - start for i in held for place in cut[i])
        return adapted_linear(x, weight, bias, low, b, places, self.options.scale)

    def _dropped(self, x: Tensor) -> Tensor:
        """With dropout, whose mask is one process's also where processes have a part of the inputs each."""
        dropout = self.options.dropout if self.training else 0.0
        if not dropout or self.columns is None:
            return F.dropout(x, dropout) if dropout else x
        first, inputs = self.columns
        return x * F.dropout(x.new_ones(len(x), inputs), dropout)[:, first : first + x.shape[1]]

    def change(self, a: Tensor, b: Tensor) -> list[tuple[int, int, Tensor]]:
        """What the adapter adds to the layer's weight: first and last (exclusive) row of each part, and [rows, in].

        Args:
            a, b: whole.
        """
        places = [place for part in self.places for place in part]
        parts = _parts(places, self.options.rank)
        return [(begin, end, (b[ups] @ a[lows]) * self.options.scale) for begin, end, lows, ups in parts]


class Adapters:
    """A trunk's adapters by name, and which of them its linear layers compute with; None is the trunk itself."""

    def __init__(self) -> None:
        self.options: dict[str, LoraOptions] = {}
        self.chosen: str | None = None

    def bound(self, layer: Callable[..., Any], name: str | None) -> Callable[..., Any]:
        """The layer as a function that computes with one adapter whenever it runs, also once more in a backward."""

        def run(*arguments: Any) -> Any:
            before, self.chosen = self.chosen, name
            try:
                return layer(*arguments)
            finally:
                self.chosen = before

        return run
