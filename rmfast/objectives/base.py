"""What objectives and engines agree on: an objective, the named statistics of a step, and what means divide by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", contravariant=True)


class EdgePack(Protocol):
    """What objectives of pairs read of a pack: edges [E], which of the S scores are responses', LM targets [L]."""

    @property
    def is_response(self) -> Tensor: ...
    @property
    def better(self) -> Tensor: ...
    @property
    def worse(self) -> Tensor: ...
    @property
    def margin(self) -> Tensor: ...
    @property
    def target(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...
    @property
    def lm_targets(self) -> Tensor: ...


class BatchTotals(Protocol):
    """What sums over a global batch are divided by: numbers, or scalars on the device."""

    @property
    def groups(self) -> Tensor | int: ...
    @property
    def weight(self) -> Tensor | float: ...
    @property
    def lm_tokens(self) -> Tensor | float: ...


class BatchCounts(Protocol):
    """What logged means of a global batch divide by, known to the host."""

    @property
    def edges(self) -> int: ...
    @property
    def responses(self) -> int: ...


@dataclass(frozen=True)
class Statistics:
    """Detached scalars on the device, by name: `sums` (of which "loss" is what was minimised or raised) add up over
    packs and ranks, `maxima` join by maximum, and `figures` are of a whole step."""

    sums: Mapping[str, Tensor]
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    figures: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        return self.sums["loss"]


Reduce = Callable[[Tensor], Tensor]
"""Gives the sum (or maximum) over ranks of a tensor."""


def join_statistics(packs: Sequence[Statistics], add: Reduce, highest: Reduce) -> Statistics:
    """Statistics over packs and ranks: one reduction of all sums, and one of all maxima if there are some."""
    sums = add(torch.stack([_stacked(pack.sums) for pack in packs]).sum(0))
    maxima = _stacked(packs[0].maxima)
    if packs[0].maxima:
        maxima = highest(torch.stack([_stacked(pack.maxima) for pack in packs]).amax(0))
    return Statistics(named(packs[0].sums, sums), named(packs[0].maxima, maxima))


def copied(statistics: Statistics) -> Statistics:
    """The same figures in memory of their own."""
    return join_statistics([statistics], lambda sums: sums, lambda maxima: maxima)


def named(names: Mapping[str, Tensor] | Sequence[str], values: Tensor) -> dict[str, Tensor]:
    """Values [n] by n names."""
    return dict(zip(names, values.unbind(), strict=True))


def _stacked(figures: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(figures.values())) if figures else torch.empty(0)


class Objective(Protocol[P]):
    """What a pack of type P adds to the global batch's loss. Equal ones hash alike."""

    def __call__(
        self, scores: Tensor, log_prob: Tensor | None, pack: P, totals: BatchTotals, /
    ) -> tuple[Tensor, Statistics]:
        """The pack's share of the loss, which carries gradients, and its detached statistics."""
        ...

    def metrics(self, values: Mapping[str, float], totals: BatchCounts, /) -> dict[str, float]:
        """What is logged of a step.

        Args:
            values: its sums and maxima over the global batch, by name.
        """
        ...
