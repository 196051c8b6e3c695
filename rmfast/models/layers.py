"""Linear layers, embedding and norms. A decoder takes them from a factory, so that an engine can put in others."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmfast.kernels import add_rms_norm, linear_log_prob, rms_norm
from rmfast.models.copies import cast
from rmfast.models.low_rank import Adapters, LoraOptions, LowRank


class Linear(nn.Module):
    """y = x W^T + b in x's dtype, whatever the dtype that the weights are stored in (fp32 masters under bf16).

    Attributes:
        adapters: by name; `trunk` says which of them adds to y. A layer without any has None for both.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.adapters: nn.ModuleDict | None = None
        self.trunk: Adapters | None = None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else cast(self.bias, x.dtype)
        return self._product(x, cast(self.weight, x.dtype), bias)

    def split(self, x: Tensor, rows: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The first sizes[0] outputs at some rows of x alone, the others at all of them."""
        biases = (None, None) if self.bias is None else cast(self.bias, x.dtype).split(sizes, dim=-1)
        first, rest = cast(self.weight, x.dtype).split(sizes, dim=-2)
        return self._product(x[rows], first, biases[0]), self._product(x, rest, biases[1], sizes[0])

    def adapter(self) -> LowRank | None:
        """The one that is chosen, if this layer has it."""
        name = None if self.trunk is None else self.trunk.chosen
        found = (
            self.adapters[name] if name is not None and self.adapters is not None and name in self.adapters else None
        )
        assert found is None or isinstance(found, LowRank)
        return found

    def low_rank(self, places: Sequence[tuple[int, int]], options: LoraOptions) -> LowRank:
        """A new adapter of this process's part of the layer, without values.

        Args:
            places: of the parts among the whole layer's outputs, see `LowRank`.
        """
        return LowRank(self.weight.shape[1], places, options)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, start: int = 0) -> Tensor:
        """The outputs from `start` on, of whose rows weight and bias are."""
        adapter = self.adapter()
        return F.linear(x, weight, bias) if adapter is None else adapter(x, weight, bias, start)


def linear_weights(module: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of a module's linear layers."""
    return [weight for layer in module.modules() if isinstance(layer, Linear) for weight in layer.parameters()]


@torch.no_grad()
def narrow(module: nn.Module, dtype: torch.dtype, head: nn.Module | None) -> None:
    """Freeze a module and store all that is read in a dtype in it: every weight but those of norms and a head."""
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, Linear | Embedding) and part is not head:
            part.to(dtype)


class Embedding(nn.Module):
    """Rows of a table [vocabulary, width]."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(tokens, self.weight).to(dtype)


class Norm(nn.Module):
    """RMSNorm of rows [..., width].

    Args:
        offset: what is added to the weights: 1 where they are stored around 0 (Gemma).
    """

    def __init__(self, width: int, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.offset = offset

    @property
    def gain(self) -> Tensor:
        """What normalised rows are multiplied by: the weight, or in fp32 (fp64 of such a weight) its sum with the
        offset."""
        if not self.offset:
            return self.weight
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)) + self.offset

    def forward(self, x: Tensor, *, eps: float, impl: str) -> Tensor:
        return rms_norm(x, self.gain, eps=eps, impl=impl)

    def added(self, branch: Tensor, residual: Tensor, *, eps: float, impl: str) -> tuple[Tensor, Tensor]:
        """Of the sum of two streams, and the sum."""
        return add_rms_norm(branch, residual, self.gain, eps=eps, impl=impl)


class LayerFactory(Protocol):
    """How a decoder's products are split among the ranks that compute it together.

    Heads, MLP units and the vocabulary are divided by `ranks`; sizes that it is asked for are those of the whole.
    A residual stream is what travels between layers: [T, d], or a rank's part of it.
    """

    ranks: int

    def column(self, inputs: int, outputs: int, bias: bool) -> Linear:
        """From the residual stream to this rank's part of the outputs."""
        ...

    def row(self, inputs: int, outputs: int, bias: bool) -> Linear:
        """From this rank's part of the inputs to the residual stream."""
        ...

    def embedding(self, vocabulary: int, width: int) -> Embedding:
        """From tokens to the residual stream."""
        ...

    def output(self, width: int, vocabulary: int) -> Linear:
        """A table [vocabulary, width] that `log_prob` reads."""
        ...

    def norm(self, width: int, offset: float = 0.0) -> Norm:
        """Of the residual stream."""
        ...

    def head_norm(self, width: int, offset: float = 0.0) -> Norm:
        """Of this rank's heads, one weight for all."""
        ...

    def fill(self, rows: Tensor) -> Tensor:
        """Rows [S], and behind them as many more as `pick` needs."""
        ...

    def pick(self, stream: Tensor, rows: Tensor) -> Tensor:
        """Some rows of a residual stream, as a stream."""
        ...

    def whole(self, stream: Tensor) -> Tensor:
        """A residual stream on every rank, whose further use all ranks repeat."""
        ...

    def log_prob(
        self, hidden: Tensor, table: Tensor, targets: Tensor, *, ids: int | None, temperature: float,
        softcap: float | None, impl: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Log-probabilities of tokens and entropies, fp32 [N] each, under the softmax of hidden [N, d] times a table of
        this factory's, with a soft cap or none, over the temperature.

        Args:
            ids: the softmax is over the first so many ids of the whole vocabulary; None for all.
        """
        ...


class NativeLayers:
    """Whole, unsharded layers."""

    ranks = 1

    def column(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return Linear(inputs, outputs, bias)

    def row(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return Linear(inputs, outputs, bias)

    def embedding(self, vocabulary: int, width: int) -> Embedding:
        return Embedding(vocabulary, width)

    def output(self, width: int, vocabulary: int) -> Linear:
        return Linear(width, vocabulary, bias=False)

    def norm(self, width: int, offset: float = 0.0) -> Norm:
        return Norm(width, offset)

    def head_norm(self, width: int, offset: float = 0.0) -> Norm:
        return Norm(width, offset)

    def fill(self, rows: Tensor) -> Tensor:
        return rows

    def pick(self, stream: Tensor, rows: Tensor) -> Tensor:
        return stream[rows]

    def whole(self, stream: Tensor) -> Tensor:
        return stream

    def log_prob(
        self, hidden: Tensor, table: Tensor, targets: Tensor, *, ids: int | None, temperature: float,
        softcap: float | None, impl: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "impl": impl}
        return linear_log_prob(hidden, cast(table, hidden.dtype)[:ids], targets, **options)
