"""Which groups a step's global batch holds, and how they are laid into packs and spread over ranks.

The first depends on seed and data only; the second may depend on the number of ranks.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Epoch:
    """Rows of one epoch, in order, and the number of its first step."""

    number: int
    first_step: int
    rows: np.ndarray


class StepPlan:
    """The global batch of every step.

    Args:
        sizes: groups of each source; the sources' rows follow each other in the table.
        weights: passes over each source in an epoch: 2 takes each row twice, 0.5 another half of the rows each time.
        groups_per_step: global batch; an epoch's last one may be smaller.
        seed: of the order. shuffle: False keeps the sources' order.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], *, groups_per_step: int, seed: int, shuffle: bool = True
    ) -> None:
        if len(sizes) != len(weights):
            raise ValueError(f"{len(sizes)} sources but {len(weights)} weights")
        self.sizes, self.weights = list(sizes), list(weights)
        self.groups_per_step, self.seed, self.shuffle = groups_per_step, seed, shuffle
        self._offsets = np.concatenate(([0], np.cumsum(self.sizes)))
        self._first_steps = [0]
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)

    def _range(self, source: int, epoch: int) -> tuple[int, int]:
        """Where an epoch is in the endless stream of passes over a source."""
        share = self.weights[source] * self.sizes[source]
        return math.floor(epoch * share + 1e-9), math.floor((epoch + 1) * share + 1e-9)

    def epoch_size(self, epoch: int) -> int:
        """Groups of an epoch."""
        return sum(high - low for low, high in (self._range(s, epoch) for s in range(len(self.sizes))))

    def first_step(self, epoch: int) -> int:
        """Steps before an epoch; `first_step(n)` is also the number of steps of n epochs."""
        while len(self._first_steps) <= epoch:
            size = self.epoch_size(len(self._first_steps) - 1)
            self._first_steps.append(self._first_steps[-1] + -(-size // self.groups_per_step))
        return self._first_steps[epoch]

    def _build_epoch(self, epoch: int) -> np.ndarray:
        rows = []
        for source, size in enumerate(self.sizes):
            low, high = self._range(source, epoch)
            if high == low:
                continue
            for turn in range(low // size, -(-high // size)):
                order = np.arange(size)
                if self.shuffle:
                    order = np.random.default_rng((self.seed, 1, source, turn)).permutation(size)
                part = order[max(low - turn * size, 0) : high - turn * size]
                rows.append(self._offsets[source] + part)
        joined = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return np.random.default_rng((self.seed, 2, epoch)).permutation(joined) if self.shuffle else joined

    def step(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch and rows of the table of a step's global batch."""
        epoch = 0
        while self.first_step(epoch + 1) <= step:
            epoch += 1
        begin = (step - self.first_step(epoch)) * self.groups_per_step
        return epoch, self._epoch(epoch)[begin : begin + self.groups_per_step]

    def progress(self, step: int) -> float:
        """Epochs done after a step, as a fraction."""
        epoch, rows = self.step(step)
        done = (step - self.first_step(epoch)) * self.groups_per_step + len(rows)
        return epoch + done / self.epoch_size(epoch)


def plan_packs(tokens: np.ndarray, *, ranks: int, budget: int) -> list[list[np.ndarray]]:
    """Lay a global batch into packs and spread them over ranks.

    Every rank gets the same number of packs (some may be empty), as few as the budget allows, filled evenly.

    Args:
        tokens: int [G], stored tokens of each group.
        ranks: number of ranks.
        budget: tokens a pack may hold; no group may exceed it.

    Returns:
        For each rank its packs, each the positions in `tokens` of its groups, ascending.

    Raises:
        ValueError: a group exceeds the budget.
    """
    if len(tokens) and tokens.max() > budget:
        raise ValueError(f"a group of {tokens.max()} tokens exceeds the budget of {budget}")
    order = np.argsort(-tokens, kind="stable").tolist()
    size = tokens.tolist()
    first_fit = _first_fit(order, size, budget)
    rounds = max(1, -(-len(first_fit) // ranks))
    packs = _even(order, size, rounds * ranks, budget) or first_fit
    packs += [[] for _ in range(rounds * ranks - len(packs))]
    load = [sum(size[i] for i in pack) for pack in packs]
    by_load = sorted(range(len(packs)), key=lambda p: (-load[p], p))
    out: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for place, p in enumerate(by_load):  # snake order, so that ranks get equal loads
        turn, seat = divmod(place, ranks)
        out[seat if turn % 2 == 0 else ranks - 1 - seat].append(np.sort(np.asarray(packs[p], dtype=np.int64)))
    return out


def _first_fit(order: list[int], size: list[int], budget: int) -> list[list[int]]:
    """Each into the first pack with room for it. A binary tree knows the most room below each node: its leaves are
    packs, those not yet begun too, so that a group costs the tree's height."""
    most = 2 * sum(size) // budget + 1  # two packs that follow each other hold more than the budget
    leaves = 1 << (most - 1).bit_length()
    room = [budget] * (2 * leaves)
    packs: list[list[int]] = []
    for i in order:
        node = 1
        while node < leaves:
            node *= 2
            node += size[i] > room[node]
        if node - leaves == len(packs):
            packs.append([])
        packs[node - leaves].append(i)
        room[node] -= size[i]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return packs


def _even(order: list[int], size: list[int], count: int, budget: int) -> list[list[int]] | None:
    """Largest first into the emptiest pack; None where that overflows a pack."""
    packs: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, p) for p in range(count)]
    for i in order:
        load, p = heap[0]
        if load + size[i] > budget:
            return None
        packs[p].append(i)
        heapq.heapreplace(heap, (load + size[i], p))
    return packs
