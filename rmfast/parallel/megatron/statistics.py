"""Statistics of a step that the last stages have, on all ranks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from rmfast.data.pack import Pack
from rmfast.objectives.base import FeatureGradients, Objective, Statistics, join_statistics, named
from rmfast.parallel.megatron.groups import Groups

TERM = "term"


class JoinStatistics:
    """Joins the statistics of all ranks' packs; the last stage's first tensor rank has them."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        # What statistics hold, known to all stages, by objective and whether its batch term is among them.
        self._names: dict[tuple[Objective[Pack], bool], tuple[list[str], list[str], list[str]]] = {}

    def __call__(
        self,
        objective: Objective[Pack],
        packs: Sequence[Statistics],
        term: FeatureGradients | None = None,
        *,
        of_batch: bool = False,
    ) -> Statistics:
        """Statistics over all packs, on all ranks.

        Args:
            packs: this rank's, empty where others have them.
            term: where this rank computed it. of_batch: whether some rank did.
        """
        world, last = self.groups.world, self.groups.last and self.groups.tensor.rank == 0
        figures = {} if term is None else {name: f.float() for name, f in term.figures.items()} | {TERM: term.loss}
        here = join_statistics(packs, lambda sums: sums, lambda maxima: maxima) if packs else Statistics({})
        key = (objective, of_batch)
        if key not in self._names:
            known: list[Any] = [(list(here.sums), list(here.maxima), list(figures)) if packs else None]
            if world.size > 1:
                dist.broadcast_object_list(known, src=self.groups.rank_of(0, 0, self.groups.pipeline.size - 1))
            self._names[key] = known[0]
        of_sums, of_maxima, of_figures = self._names[key]
        sums = torch.zeros(len(of_sums) + len(of_figures), device=world.device)
        maxima = torch.full((len(of_maxima),), -torch.inf, device=world.device)
        if last:
            whole = figures if self.groups.data.rank == 0 else {}  # figures are the whole batch's on every data rank
            filled = torch.stack([*here.sums.values(), *whole.values()])
            sums[: len(filled)] = filled
            if of_maxima:
                maxima.copy_(torch.stack(list(here.maxima.values())))
        world.sum_(sums)
        if of_maxima:
            world.max_(maxima)
        parts = sums.split([len(of_sums), len(of_figures)])
        statistics = Statistics(named(of_sums, parts[0]), named(of_maxima, maxima))
        if not of_batch:
            return statistics
        found = named(of_figures, parts[1])
        return FeatureGradients(found.pop(TERM), [], None, found).added_to(statistics)
