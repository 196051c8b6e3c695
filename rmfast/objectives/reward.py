"""The reward model's objective: ranking loss, and a language-model loss on the chosen responses if asked."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from rmfast.kernels import ranking_loss


class EdgePack(Protocol):
    """What the objective reads of a pack: edges [E], which of the S scores are responses', and LM targets [L]."""

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


SUMS = ("loss", "ranking_loss", "lm_loss", "correct", "margin", "reward")
"""What `Statistics.sums` holds: three parts of the global batch's losses, then sums over edges or responses."""


@dataclass(frozen=True)
class Statistics:
    """Detached figures of a pack: `sums` [6] (see SUMS) add up over packs and ranks, `extrema` [2] = (max reward,
    -min reward) join by maximum. `figures` are scalars of a whole step, by the name of their metric. All stay on the
    device."""

    sums: Tensor
    extrema: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RewardObjective:
    """Ranking loss (Part II, equation 2) plus `lm` times the NLL of the chosen response (Part I, equation 2).

    Args:
        center: coefficient of (s_better + s_worse)^2.
        lm: weight of the LM loss, a mean over the chosen responses' tokens; 0 leaves it out.
        impl: of the kernels.
    """

    center: float = 0.0
    lm: float = 0.0
    impl: str = "auto"

    def __call__(
        self, scores: Tensor, log_prob: Tensor | None, pack: EdgePack, totals: BatchTotals
    ) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's loss.

        Args:
            scores: [S, M]; with M heads the loss is the mean over heads.
            log_prob: [L] or None; targets of -1 do not count.
            totals: of the global batch.

        Returns:
            Loss (a scalar that carries gradients) and detached statistics.
        """
        ranking = ranking_loss(
            scores.T,
            pack.better,
            pack.worse,
            margin=pack.margin,
            target=pack.target,
            weight=pack.weight,
            center=self.center,
            total_weight=totals.weight,
            impl=self.impl,
        ).mean()
        loss = ranking
        lm_loss = torch.zeros_like(ranking)
        if self.lm and log_prob is not None:
            count = totals.lm_tokens
            count = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
            lm_loss = -log_prob.where(pack.lm_targets >= 0, 0.0).sum() / count
            loss = loss + self.lm * lm_loss
        return loss, _statistics(loss, ranking, lm_loss, scores, pack)


@torch.no_grad()
def _statistics(loss: Tensor, ranking: Tensor, lm_loss: Tensor, scores: Tensor, pack: EdgePack) -> Statistics:
    rewards, counted = scores.detach().mean(1), pack.is_response
    gap = rewards[pack.better] - rewards[pack.worse]
    parts = [loss, ranking, lm_loss, (gap > 0).sum().to(loss.dtype), gap.sum(), rewards.where(counted, 0.0).sum()]
    extrema = torch.stack((rewards, -rewards)).where(counted, -torch.inf).amax(1)
    return Statistics(torch.stack(parts), extrema)
