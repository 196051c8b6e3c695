"""What objectives and engines agree on: an objective, the named statistics of a step, and what means divide by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rmfast.models.network import Outputs, Reads

P = TypeVar("P", contravariant=True)


class EdgeTensors(Protocol):
    """E edges between the S scores of a pack (see `rmfast.data.edge_columns`)."""

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


class TargetTensors(Protocol):
    """L tokens that are predicted: from which of the pack's, and their ids."""

    @property
    def rows(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor: ...


class EdgePack(Protocol):
    """What objectives of pairs read of a pack: the tokens that are scored and which of them end a response, edges and
    targets."""

    @property
    def scored(self) -> Tensor: ...
    @property
    def is_response(self) -> Tensor: ...
    @property
    def edges(self) -> EdgeTensors: ...
    @property
    def targets(self) -> TargetTensors: ...


class BatchTotals(Protocol):
    """What sums over a global batch are divided by: numbers, or scalars on the device."""

    @property
    def groups(self) -> Tensor | int: ...
    @property
    def weight(self) -> Tensor | float: ...
    @property
    def lm_tokens(self) -> Tensor | float: ...


def token_count(totals: BatchTotals) -> Tensor | float:
    """What means over predicted tokens are divided by, also where there are none."""
    count = totals.lm_tokens
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


class BatchCounts(Protocol):
    """What logged means of a global batch divide by, known to the host."""

    @property
    def edges(self) -> int: ...
    @property
    def responses(self) -> int: ...
    @property
    def lm_tokens(self) -> int: ...


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
    """The same figures in other memory."""
    return join_statistics([statistics], lambda sums: sums, lambda maxima: maxima)


def named(names: Mapping[str, Tensor] | Sequence[str], values: Tensor) -> dict[str, Tensor]:
    """Values [n] by n names."""
    return dict(zip(names, values.unbind(), strict=True))


def _stacked(figures: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(figures.values())) if figures else torch.empty(0)


@dataclass(frozen=True)
class FeatureGradients:
    """The weighted term of a step, the gradient of each pack's features, that of the prototypes, and figures."""

    loss: Tensor
    packs: list[Tensor]
    prototypes: Tensor | None
    figures: dict[str, Tensor]

    def added_to(self, statistics: Statistics) -> Statistics:
        """Statistics of the step's packs, with the term."""
        sums = {**statistics.sums, "loss": statistics.loss + self.loss}
        return replace(statistics, sums=sums, figures={**statistics.figures, **self.figures})


class BatchTerm(Protocol[P]):
    """A term over the features of the whole global batch."""

    def __call__(
        self,
        features: Sequence[Tensor],
        packs: Sequence[P],
        inputs: Sequence[P],
        prototypes: Tensor | None,
        steps: Tensor,
        /,
    ) -> FeatureGradients:
        """The term of one step; all ranks call it.

        Args:
            features: fp32 [S, d] of each of this rank's packs. packs: the packs, on the CPU. inputs: on the device.
            prototypes: [K, d]. steps: taken so far, a scalar on the device.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of earlier steps, by name: the tensors themselves, the same on all ranks."""
        ...


class Objective(Protocol[P]):
    """What a pack of type P adds to the global batch's loss. Equal ones hash alike.

    `batch_term` is a term that no pack has a share of: engines compute the features of all packs first, then the term,
    then the gradients (GradCache, Gao et al. 2021). None for none.
    """

    @property
    def batch_term(self) -> BatchTerm[P] | None: ...

    def reads(self, pack: P, /) -> Reads:
        """What the objective needs of a pack."""
        ...

    def __call__(self, outputs: Outputs, pack: P, totals: BatchTotals, /) -> tuple[Tensor, Statistics]:
        """The pack's share of the loss, which carries gradients, and its detached statistics."""
        ...

    def metrics(self, values: Mapping[str, float], totals: BatchCounts, /) -> dict[str, float]:
        """What is logged of a step.

        Args:
            values: its sums and maxima over the global batch, by name.
        """
        ...
