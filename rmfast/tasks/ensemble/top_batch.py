"""What members with top layers learn from in one step: packs of each, and the trunk's states of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rmfast.data.loader import Step, StepLoader, Totals
from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable
from rmfast.tasks.ensemble.states import TRAIN, States


@dataclass(frozen=True, kw_only=True, eq=False)
class TopBatch:
    """A step of every member, None of those that have finished. Packs are computed round by round, one of each member.

    `before` gives the trunk's states [T, d] of a round's packs, behind each other.
    """

    steps: list[Step | None]
    before: Callable[[int], Tensor]

    @property
    def rounds(self) -> int:
        return max(len(step.packs) for step in self.steps if step is not None)

    def packs(self, number: int) -> list[Pack | None]:
        """Each member's pack of a round; None where it has no more."""
        return [step.packs[number] if step and number < len(step.packs) else None for step in self.steps]


class SeparateOrders:
    """Each member's steps over its rows in its order, and kept states of them.

    Args:
        loaders: of each member. groups: the rows of the training table that each loader's table has.
    """

    def __init__(self, loaders: Sequence[StepLoader], groups: Sequence[np.ndarray], states: States) -> None:
        self.loaders, self.groups, self.states = list(loaders), list(groups), states
        self.totals = [loader.total for loader in loaders]

    def __call__(self, number: int) -> TopBatch:
        """A step of all that have not finished. The states are read here, ahead of the step."""
        steps = [loader.build(number) if number < loader.total else None for loader in self.loaders]
        batch = TopBatch(steps=steps, before=lambda number: before[number])
        before = []
        for round_ in range(batch.rounds):
            placed = zip(batch.packs(round_), self.groups, strict=True)
            parts = [self.states(TRAIN, pack, groups[pack.groups]) for pack, groups in placed if pack is not None]
            before.append(torch.cat(parts))
        return batch


class CommonBatches:
    """The same batches for all members, whose rows count as often as each member's weights say; the trunk computes
    them once.

    Args:
        weights: [M, groups of the loader's table], see `bootstrap`.
    """

    def __init__(self, loader: StepLoader, weights: np.ndarray, states: States) -> None:
        self.loader, self.weights, self.states = loader, weights, states
        self.totals = [loader.total] * len(weights)

    def __call__(self, number: int) -> TopBatch:
        """A step of all members."""
        step = self.loader.build(number)

        def before(number: int) -> Tensor:
            pack = step.packs[number]
            return self.states(TRAIN, pack, pack.groups).repeat(len(self.weights), 1)

        return TopBatch(steps=[weighted(step, self.loader.table, w) for w in self.weights], before=before)


def bootstrap(seeds: Sequence[int], groups: int) -> np.ndarray:
    """How often each row counts for each member, int64 [M, groups]: Poisson(1), what drawing rows with replacement
    gives of many (Oza and Russell, Online Bagging and Boosting, section 2)."""
    return np.stack([np.random.default_rng((seed, 4)).poisson(1.0, groups) for seed in seeds])


def weighted(step: Step, table: GroupTable, weights: np.ndarray) -> Step:
    """A step in which each row of the table counts so often (int [G]); edges of rows that do not count are left out."""
    of_rows = weights[step.rows]
    totals: Totals = replace(
        step.totals,
        weight=float((table.weight[step.rows] * of_rows).sum()),
        edges=int(table.edges[step.rows][of_rows > 0].sum()),
    )
    return replace(step, packs=[_weighted(pack, weights) for pack in step.packs], totals=totals)


def _weighted(pack: Pack, weights: np.ndarray) -> Pack:
    counts = torch.from_numpy(weights[pack.groups[pack.group[pack.edges.better].numpy()]])
    edges = pack.edges.map(lambda column: column[counts > 0])
    return replace(pack, edges=replace(edges, weight=edges.weight * counts[counts > 0]))
