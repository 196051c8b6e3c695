"""The engine interface: what runs a step, by one process, DDP, FSDP2 or another system."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rmfast.data.loader import Totals
from rmfast.data.pack import Pack
from rmfast.models.config import DecoderConfig
from rmfast.models.network import NextLogits, Outputs, Reads
from rmfast.objectives.base import Objective, Statistics
from rmfast.parallel.residence import Movable
from rmfast.parallel.world import World


@dataclass(frozen=True)
class Shard:
    """A part of a tensor whose whole shape is `shape`, held by this process: as many rows as `tensor` has, from `start`
    on, and of each as many columns (second dimension), from `column` on.

    `writer` says whether this process saves it; None: a part every process, a whole tensor rank 0 alone.
    """

    tensor: Tensor
    start: int
    shape: tuple[int, ...]
    column: int = 0
    writer: bool | None = None


class ReadRows(Protocol):
    """Reads parts of saved tensors."""

    def __call__(self, name: str, begin: int, end: int, columns: tuple[int, int] | None = None, /) -> Tensor:
        """Rows `begin` to `end` (exclusive) of a tensor, of each all columns or some; a scalar counts as one row."""
        ...


def piece_name(name: str, number: int) -> str:
    """Key in a state of a tensor's first, second, ... part that a process holds."""
    return name if not number else f"{name}#{number}"


def tensor_name(key: str) -> str:
    """The tensor that a state's key belongs to."""
    return key.partition("#")[0]


class Engine(Movable, Protocol):
    """Runs steps. All ranks call the same methods in the same order.

    `world` are all ranks; `data` are those that share the groups of a global batch; those that compute one
    model together (tensor and pipeline parallelism) have the same number in it, and are given the same packs. `leads`:
    this process is the first of those that hold the heads.
    """

    device: torch.device
    world: World
    data: World
    leads: bool

    def parameter_counts(self) -> tuple[int, int]:
        """Weights of the whole model, and how many of them are trained."""
        ...

    def forward_backward(self, packs: Sequence[Pack], objective: Objective[Pack], totals: Totals) -> Statistics:
        """Gradients of the global batch's loss, and its statistics over all ranks (on the device)."""
        ...

    def measure(self, packs: Sequence[Pack], objective: Objective[Pack], totals: Totals) -> Statistics:
        """The statistics of `forward_backward`, with the dropout that it would draw, and no gradients."""
        ...

    def perturb(self, *, eta: float, rho: float | None = None) -> Tensor:
        """Move the trained weights up the gradient g and drop it: theta' = theta + eta g (MetaRM's ascent, Part II,
        algorithm 1), or, with rho, theta + rho g / |g| (ours). `restore` must come before `optimizer_step`.

        Where g or the loss that it is of is not finite, the next `optimizer_step` is left out, whatever its gradient.

        Returns:
            |g| over all weights and ranks, a scalar on the device.
        """
        ...

    def restore(self) -> None:
        """The weights before `perturb`, to the bit; gradients stay as they are."""
        ...

    def optimizer_step(self, lr: float) -> Tensor:
        """Apply the gradients; gives their norm. Where it or the loss is not finite the step is left out."""
        ...

    def read(self, packs: Sequence[Pack], reads: Callable[[Pack], Reads]) -> list[Outputs]:
        """What the heads give for each pack, without dropout and gradients, on every rank that has the pack."""
        ...

    def score(self, packs: Sequence[Pack]) -> list[Tensor]:
        """Scores of each pack [S, M], without dropout, on every rank that has the pack."""
        ...

    def state(self) -> dict[str, Shard]:
        """This process's part of weights and optimizer state, by name: "model/...", "exp_avg/...", ...; see
        `piece_name` where it holds several parts of one tensor."""
        ...

    def load_state(self, read: ReadRows) -> None:
        """Take back what `state` gave, at this or another number of ranks, by this or another engine."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """All weights, whole, with the adapter merged into them, on the CPU of rank 0; empty on the others."""
        ...

    def adapter(self) -> dict[str, Tensor]:
        """What a PEFT folder holds of the adapter and the reward head, by its names, on the CPU of rank 0; empty on
        the others, and without an adapter."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """What a process holds of a model that is sampled from.

    Args:
        runs: of consecutive layers, in the model's order: each gives the residual stream for the next one, which other
            processes may hold, and the model's last one logits. layers: all of theirs, by number in the model.
        config: the whole decoder's. dtype: of activations, keys and values.
        kv_heads: key-value heads.
        first, width: the slice of the vocabulary that its logits are of, 0 ids where it has none.
        tensor: the processes that hold the other slices and heads. pipeline: those that hold the other layers, in
            order, of which each has as many runs; around: the same ones, for what the last one sends the first. None:
            this process alone.
        replayed: whether a GPU may record what it computes in a graph.
    """

    runs: tuple[NextLogits, ...]
    layers: tuple[int, ...]
    config: DecoderConfig
    dtype: torch.dtype
    kv_heads: int
    width: int
    first: int = 0
    tensor: World | None = None
    pipeline: World | None = None
    around: World | None = None
    replayed: bool = False

    @property
    def shared(self) -> bool:
        """Whether other processes hold parts of the model."""
        return self.tensor is not None or self.pipeline is not None

    @property
    def keeps(self) -> bool:
        """Whether this process, of those that hold a model, has the figures of what is drawn."""
        tensor, stages = self.tensor, self.pipeline
        return (tensor is None or tensor.rank == 0) and (stages is None or stages.rank == stages.size - 1)


class SampledEngine(Protocol):
    """An engine whose weights can be sampled from."""

    device: torch.device
    world: World
    data: World

    def decoding(self) -> AbstractContextManager[Held]:
        """Within it the weights that are trained stay as they are, and the processes that hold a model together sample
        from it, whatever others do."""
        ...
