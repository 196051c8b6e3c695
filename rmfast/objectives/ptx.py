"""PPO's policy objective with demonstrations beside the sampled answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmfast.models.network import Outputs, Reads
from rmfast.objectives.base import BatchCounts, BatchTotals, Statistics
from rmfast.objectives.lm import SFTObjective
from rmfast.objectives.policy import AnswerPack, PolicyObjective

SHARE = "ptx"
"""Column of a demonstration's targets: 1 over how many there are in the global batch of demonstrations. By it packs of
demonstrations are told from packs of answers."""


@dataclass(frozen=True, kw_only=True)
class PtxObjective:
    """The policy's objective, plus `weight` times the negative log-likelihood of demonstrations (PPO-ptx; Ouyang et al.
    2022, equation 2): gradients of both add up before the optimizer's one step.

    Each is a mean over its tokens: demonstrations count in none of the means over answers. They are read at temperature
    1 and over the whole vocabulary, as in supervised fine-tuning.
    """

    policy: PolicyObjective
    weight: float

    @property
    def batch_term(self) -> None:
        """None: see `Objective`."""

    def reads(self, pack: AnswerPack) -> Reads:
        """See `Objective`."""
        return (SFTObjective() if SHARE in pack.targets.beside else self.policy).reads(pack)

    def __call__(self, outputs: Outputs, pack: AnswerPack, totals: BatchTotals) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's loss; see `PolicyObjective`."""
        share = pack.targets.beside.get(SHARE)
        if share is None:
            loss, statistics = self.policy(outputs, pack, totals)
            return loss, Statistics({**statistics.sums, "ptx_loss": torch.zeros_like(loss)}, statistics.maxima)
        assert outputs.log_prob is not None and outputs.entropy is not None
        likelihood = -(outputs.log_prob * share).sum()
        loss = self.weight * likelihood
        none = Outputs(outputs.scores, outputs.log_prob[:0].detach(), entropy=outputs.entropy[:0].detach())
        _, nothing = self.policy(none, _Without(_NoTargets(pack.targets.rows[:0], pack.targets.ids[:0])), totals)
        sums = {**nothing.sums, "loss": loss.detach(), "ptx_loss": likelihood.detach()}
        return loss, Statistics(sums, nothing.maxima)

    def metrics(self, values: Mapping[str, float], totals: BatchCounts) -> dict[str, float]:
        """See `Objective`."""
        return self.policy.metrics(values, totals) | {"loss/ptx_avg": values["ptx_loss"]}


@dataclass(frozen=True, eq=False)
class _NoTargets:
    rows: Tensor
    ids: Tensor
    beside: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Without:
    """A pack without answers: what the policy's statistics are of it."""

    targets: _NoTargets
