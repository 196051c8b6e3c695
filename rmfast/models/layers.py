"""Linear layers and the embedding. A decoder takes them from a factory, so that an engine can put in its own."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T + b in x's dtype, whatever the dtype that the weights are stored in (fp32 masters under bf16)."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def split(self, parts: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Different inputs for consecutive slices of the outputs: [(x, outputs), ...] -> a result for each."""
        sizes = [size for _, size in parts]
        weights = self.weight.split(sizes)
        biases = [None] * len(sizes) if self.bias is None else self.bias.split(sizes)
        return [
            F.linear(x, w.to(x.dtype), None if b is None else b.to(x.dtype))
            for (x, _), w, b in zip(parts, weights, biases, strict=True)
        ]


class Embedding(nn.Module):
    """Rows of a table [vocabulary, width]."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        return F.embedding(tokens, self.weight).to(dtype)


class Norm(nn.Module):
    """Holds the weight of an RMSNorm; the ops take it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


class LayerFactory(Protocol):
    """Where a decoder takes its matrices from."""

    def linear(self, inputs: int, outputs: int, bias: bool) -> Linear: ...

    def embedding(self, vocabulary: int, width: int) -> Embedding: ...


class NativeLayers:
    """Whole, unsharded layers."""

    def linear(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return Linear(inputs, outputs, bias)

    def embedding(self, vocabulary: int, width: int) -> Embedding:
        return Embedding(vocabulary, width)
