"""Updates of a model from a rollout: passes over its minibatches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from rmfast.data.loader import Totals
from rmfast.data.pack import Pack
from rmfast.objectives.base import BatchCounts, Objective, Statistics
from rmfast.parallel.engine import Engine


class Averaged(Objective[Pack], Protocol):
    """An objective whose metrics are means over tokens, so that they can be averaged over updates."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A model that learns from rollouts.

    Args:
        name: in errors and figures.
        rate: learning rate of this step.
    """

    name: str
    engine: Engine
    objective: Averaged
    rate: float
    done: list[tuple[Statistics, Tensor, Totals]] = field(default_factory=list)

    def update(self, packs: Sequence[Pack], totals: Totals) -> None:
        """A step of the optimizer on one minibatch; all ranks call it."""
        statistics = self.engine.forward_backward(packs, self.objective, totals)
        self.done.append((statistics, self.engine.optimizer_step(self.rate), totals))

    def device(self) -> dict[str, Tensor]:
        """What the updates left on the device: figures [updates], by the model's and their names."""
        if not self.done:
            return {}
        rows = [{**s.sums, **s.maxima, "grad_norm": norm} for s, norm, _ in self.done]
        return {f"{self.name} {key}": torch.stack([row[key].reshape(()) for row in rows]) for key in rows[0]}

    def read(self, values: Mapping[str, Any]) -> list[dict[str, float]]:
        """The figures of each update, read."""
        names = {
            key.removeprefix(f"{self.name} "): value for key, value in values.items() if key.startswith(f"{self.name} ")
        }
        return [dict(zip(names, row, strict=True)) for row in zip(*names.values(), strict=True)]

    def metrics(self, updates: Sequence[Mapping[str, float]], sound: Sequence[int]) -> dict[str, float]:
        """The objective's metrics, means over some of the updates."""
        counts: list[BatchCounts] = [totals for _, _, totals in self.done]
        each = [self.objective.metrics(updates[number], counts[number]) for number in sound]
        return {key: sum(one[key] for one in each) / len(each) for key in each[0]} if each else {}
