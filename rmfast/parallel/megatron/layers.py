"""A decoder's products divided among tensor-parallel ranks, on megatron-core's collectives.

A residual stream is [T, d] on every rank, or under sequence parallelism a rank's [T / ranks, d]. Weights carry what
megatron-core and the optimizer must know of them: `tensor_model_parallel` where ranks hold different parts,
`sequence_parallel` where each rank sees its tokens only, `partial_gradient` where all hold the same and each has the
gradient through its heads, outputs or inputs only.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn

from rmfast.kernels import linear_log_prob
from rmfast.models.copies import cast
from rmfast.models.layers import Embedding, Linear, Norm
from rmfast.models.low_rank import LoraOptions, LowRank
from rmfast.parallel.megatron.place import vocabulary_share
from rmfast.parallel.world import World

NO_MASS = -1e30  # as a logarithm; times 0 it is 0, which -inf is not


def tag(parameter: nn.Parameter, name: str) -> nn.Parameter:
    """Mark a weight for megatron-core."""
    setattr(parameter, name, True)
    return parameter


class TensorParallel:
    """A `LayerFactory` over the ranks of a group.

    Args:
        world: the tensor-parallel ranks.
        sequence: whether they share the residual stream.
    """

    def __init__(self, world: World, *, sequence: bool) -> None:
        self.world, self.sequence = world, sequence
        self.ranks, self.group = world.size, world.group

    def column(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return ColumnLinear(self, inputs, outputs, bias)

    def row(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return RowLinear(self, inputs, outputs, bias)

    def embedding(self, vocabulary: int, width: int) -> Embedding:
        return VocabularyEmbedding(self, vocabulary, width)

    def output(self, width: int, vocabulary: int) -> Linear:
        table = Linear(width, self.tokens(vocabulary), bias=False)
        tag(table.weight, "tensor_model_parallel").vocabulary = vocabulary  # type: ignore[attr-defined]
        return table

    def norm(self, width: int, offset: float = 0.0) -> Norm:
        norm = Norm(width, offset)
        if self.sequence:
            tag(norm.weight, "sequence_parallel")
        return norm

    def head_norm(self, width: int, offset: float = 0.0) -> Norm:
        norm = Norm(width, offset)
        tag(norm.weight, "partial_gradient")
        return norm

    def tokens(self, vocabulary: int) -> int:
        """Rows of a vocabulary's table that each rank holds; the last rank's may reach beyond its end."""
        return vocabulary_share(vocabulary, self.ranks)

    def join(self, parts: Tensor) -> Tensor:
        """The sum of all ranks' [T, d], as a residual stream."""
        if self.sequence:
            return reduce_scatter_to_sequence_parallel_region(parts, group=self.group)
        # The sum is made in place, and recomputation may have kept the part: it would be summed again.
        return reduce_from_tensor_model_parallel_region(parts.clone(), group=self.group)

    def fill(self, rows: Tensor) -> Tensor:
        return F.pad(rows, (0, -len(rows) % self.ranks)) if self.sequence else rows

    def pick(self, stream: Tensor, rows: Tensor) -> Tensor:
        if not self.sequence:
            return stream[rows]
        # Each rank gives the rows that it has; their sum is cut again.
        at = rows - self.world.rank * len(stream)
        here = (at >= 0) & (at < len(stream))
        return self.join(stream[at.where(here, 0)].masked_fill(~here[:, None], 0.0))

    def whole(self, stream: Tensor) -> Tensor:
        if not self.sequence:
            return stream
        # What follows is repeated on every rank, and so is its gradient: each takes its rows of it.
        return gather_from_sequence_parallel_region(stream, tensor_parallel_output_grad=False, group=self.group)

    def log_prob(
        self,
        hidden: Tensor,
        table: Tensor,
        targets: Tensor,
        *,
        ids: int | None,
        temperature: float,
        softcap: float | None,
        impl: str,
    ) -> tuple[Tensor, Tensor]:
        hidden = copy_to_tensor_model_parallel_region(hidden, group=self.group)
        start = self.world.rank * len(table)
        vocabulary: int = table.vocabulary  # type: ignore[attr-defined]
        held = min(vocabulary if ids is None else min(ids, vocabulary), start + len(table)) - start
        here = (targets >= start) & (targets < start + held)
        index = (targets - start).where(here, 0)
        if held > 0:
            # Among this rank's tokens.
            table = cast(table, hidden.dtype)[:held]
            options: dict[str, Any] = {"temperature": temperature, "softcap": softcap, "impl": impl}
            within, entropy = linear_log_prob(hidden, table, index, **options)
            logit = (hidden.to(within.dtype) * table[index].to(within.dtype)).sum(-1)
            logit = (logit if softcap is None else softcap * (logit / softcap).tanh()) / temperature
            normaliser = logit - within  # logsumexp over this rank's tokens
        else:  # of which it has none: no mass, and a gradient of 0, which the backward sums in place
            logit = entropy = (hidden.to(torch.promote_types(hidden.dtype, torch.float32)) * 0.0).sum(-1)
            normaliser = logit + NO_MASS
        largest = self.world.max_(normaliser.detach().clone())
        # The sum is taken in place, and exp's backward needs exp's result: hence a copy.
        mass = (normaliser - largest).exp()
        total = reduce_from_tensor_model_parallel_region(mass.clone(), group=self.group)
        target = reduce_from_tensor_model_parallel_region(logit.where(here, 0.0), group=self.group)
        # A rank's mean logit is its normaliser less its entropy; the mean over ranks weighs them by their mass.
        mean = reduce_from_tensor_model_parallel_region(mass * (normaliser - largest - entropy), group=self.group)
        return target - total.log() - largest, total.log() - mean / total


class ColumnLinear(Linear):
    """This rank's part of the outputs."""

    def __init__(self, factory: TensorParallel, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs // factory.ranks, bias)
        self.factory = factory
        for parameter in self.parameters():
            tag(parameter, "tensor_model_parallel")

    def low_rank(self, places: Sequence[tuple[int, int]], options: LoraOptions) -> LowRank:
        """Each rank has all of A, and its part of B."""
        ranks = self.factory.ranks  # which divide every part
        adapter = super().low_rank([(begin // ranks, end // ranks) for begin, end in places], options)
        tag(adapter.a, "partial_gradient")
        tag(adapter.b, "tensor_model_parallel")
        return adapter

    def forward(self, x: Tensor) -> Tensor:
        factory = self.factory
        if not self.weight.requires_grad:  # of which megatron-core's op would make a gradient
            return super().forward(self._entered(x))
        return linear_with_grad_accumulation_and_async_allreduce(
            x,
            cast(self.weight, x.dtype),
            None if self.bias is None else cast(self.bias, x.dtype),
            gradient_accumulation_fusion=False,
            allreduce_dgrad=not factory.sequence,
            sequence_parallel=factory.sequence,
            tp_group=factory.group,
        )

    def split(self, x: Tensor, rows: Tensor, sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return super().split(self._entered(x), rows, sizes)

    def _entered(self, x: Tensor) -> Tensor:
        """The whole stream, whose gradient is summed over ranks."""
        group = self.factory.group
        if self.factory.sequence:
            return gather_from_sequence_parallel_region(x, group=group)
        return copy_to_tensor_model_parallel_region(x, group=group)


class RowLinear(Linear):
    """The product of this rank's part of the inputs, summed over ranks."""

    def __init__(self, factory: TensorParallel, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs // factory.ranks, outputs, bias)
        self.factory = factory
        tag(self.weight, "tensor_model_parallel")
        if self.bias is not None and factory.sequence:
            tag(self.bias, "sequence_parallel")

    def low_rank(self, places: Sequence[tuple[int, int]], options: LoraOptions) -> LowRank:
        """Each rank has its part of A, and all of B: the sum over ranks is of products of both."""
        inputs, world = self.weight.shape[1], self.factory.world
        adapter = LowRank(inputs, places, options, columns=(inputs * world.rank, inputs * world.size))
        tag(adapter.a, "tensor_model_parallel")
        tag(adapter.b, "partial_gradient")
        return adapter

    def forward(self, x: Tensor) -> Tensor:
        joined = self.factory.join(self._product(x, cast(self.weight, x.dtype), None))
        return joined if self.bias is None else joined + cast(self.bias, x.dtype)


class VocabularyEmbedding(Embedding):
    """This rank's rows of the table; a token of another rank's adds 0."""

    def __init__(self, factory: TensorParallel, vocabulary: int, width: int) -> None:
        super().__init__(factory.tokens(vocabulary), width)
        self.factory = factory
        tag(self.weight, "tensor_model_parallel").vocabulary = vocabulary  # type: ignore[attr-defined]

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        at = tokens - self.factory.world.rank * len(self.weight)
        here = (at >= 0) & (at < len(self.weight))
        found = F.embedding(at.where(here, 0), self.weight).masked_fill(~here[:, None], 0.0)
        return self.factory.join(found.to(dtype))


def sum_partial_gradients(chunks: list[nn.Module], world: World) -> None:
    """Sum what each rank has of the gradients of weights that all hold."""
    if world.size == 1:
        return
    parameters = [p for chunk in chunks for p in chunk.parameters() if hasattr(p, "partial_gradient")]
    grads: list[Tensor] = [vars(p)["main_grad"] for p in parameters if p.requires_grad]
    if grads:
        summed = world.sum_(torch.cat([grad.flatten() for grad in grads]))
        for grad, values in zip(grads, summed.split([g.numel() for g in grads]), strict=True):
            grad.copy_(values.view_as(grad))
