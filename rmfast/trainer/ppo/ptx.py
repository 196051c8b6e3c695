"""Demonstrations that a policy learns beside its answers."""

from dataclasses import dataclass, replace

import torch

from rmfast.data.loader import StepLoader
from rmfast.data.pack import Pack
from rmfast.objectives.policy import PolicyObjective
from rmfast.objectives.ptx import SHARE, PtxObjective


@dataclass(frozen=True, eq=False)
class Ptx:
    """Batches of demonstrations, one for each update, and the factor of their loss."""

    loader: StepLoader
    weight: float

    def objective(self, policy: PolicyObjective) -> PtxObjective:
        """The policy's objective with theirs."""
        return PtxObjective(policy=policy, weight=self.weight)

    def packs(self, update: int) -> list[Pack]:
        """This rank's packs of an update, 0 for the run's first; their targets say what the mean divides by."""
        step = self.loader.step(update)
        share = 1 / max(step.totals.lm_tokens, 1)
        return [_shared(pack, share) for pack in step.packs]


def _shared(pack: Pack, share: float) -> Pack:
    column = torch.full(pack.targets.ids.shape, share)
    return replace(pack, targets=replace(pack.targets, beside={SHARE: column}))
