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


class Engine(Protocol):
    """Runs steps. All ranks call the same methods in the same order.

    `data` are the ranks that share the groups of a global batch; those that compute one model together (tensor and
    pipeline parallelism) have the same number in it, and are given the same packs. `leads`: this process is the first
    of those that hold the heads.
    """

    device: torch.device
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


class SampledEngine(Protocol):
    """An engine whose weights can be sampled from. `sharded`: they are gathered by hooks of the modules."""

    device: torch.device
    sharded: bool

    def decoding(self) -> AbstractContextManager[tuple[NextLogits, DecoderConfig, torch.dtype]]:
        """Within it, each process alone samples from the weights that are trained, whole on each.

        Gives what computes logits, the model's sizes and the dtype of activations, keys and values.
        """
        ...
