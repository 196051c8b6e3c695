"""The reward model's objective: ranking loss, and a language-model loss on the chosen responses if asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmfast.kernels import ranking_loss
from rmfast.models.network import Outputs, Reads
from rmfast.objectives.base import BatchCounts, BatchTerm, BatchTotals, EdgePack, Statistics, token_count


@dataclass(frozen=True, kw_only=True)
class RewardObjective:
    """Ranking loss (Part II, equation 2) plus `lm` times the NLL of the chosen response (Part I, equation 2).

    The formula is that of `rmfast.kernels.ranking_loss`; the loss of held-out data (`evaluation.metrics`) and heads of
    an ensemble (`HeadLearner`) use it too.

    Args:
        center: coefficient of (s_better + s_worse)^2.
        lm: weight of the LM loss, a mean over the chosen responses' tokens; 0 leaves it out.
        batch_term: a contrastive term beside these; packs must then hold two views.
        impl: of the kernels.
    """

    center: float = 0.0
    lm: float = 0.0
    batch_term: BatchTerm[Any] | None = None
    impl: str = "auto"

    def reads(self, pack: EdgePack) -> Reads:
        """See `Objective`."""
        log_prob = (pack.targets.rows, pack.targets.ids) if self.lm else None
        return Reads(scores=pack.scored, log_prob=log_prob, features=self.batch_term is not None)

    def __call__(self, outputs: Outputs, pack: EdgePack, totals: BatchTotals) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's loss.

        Args:
            outputs: scores [S, M]; with M heads the loss is the mean over heads. log_prob [L] where `lm` asks for it;
                targets of -1 do not count.
            totals: of the global batch.

        Returns:
            Loss (a scalar that carries gradients) and detached statistics.
        """
        ranking = ranking_loss(
            outputs.scores.T,
            pack.edges.better,
            pack.edges.worse,
            margin=pack.edges.margin,
            target=pack.edges.target,
            weight=pack.edges.weight,
            center=self.center,
            total_weight=totals.weight,
            impl=self.impl,
        ).mean()
        loss = ranking
        lm_loss = torch.zeros_like(ranking)
        if self.lm and outputs.log_prob is not None:
            lm_loss = -outputs.log_prob.where(pack.targets.ids >= 0, 0.0).sum() / token_count(totals)
            loss = loss + self.lm * lm_loss
        return loss, _statistics(loss, ranking, lm_loss, outputs.scores, pack)

    def metrics(self, values: Mapping[str, float], totals: BatchCounts) -> dict[str, float]:
        """See `Objective`."""
        edges, responses = max(totals.edges, 1), max(totals.responses, 1)
        metrics = {
            "loss": values["loss"],
            "accuracy": values["correct"] / edges,
            "margin": values["margin"] / edges,
            "mean_reward": values["reward"] / responses,
            "min_reward": -values["negative_reward"],
            "max_reward": values["max_reward"],
        }
        if self.lm or self.batch_term is not None:
            metrics["ranking_loss"] = values["ranking_loss"]
        return metrics | ({"lm_loss": values["lm_loss"]} if self.lm else {})


@torch.no_grad()
def _statistics(loss: Tensor, ranking: Tensor, lm_loss: Tensor, scores: Tensor, pack: EdgePack) -> Statistics:
    rewards, counted = scores.detach().mean(1), pack.is_response
    gap = rewards[pack.edges.better] - rewards[pack.edges.worse]
    sums = {
        "loss": loss.detach(),
        "ranking_loss": ranking.detach(),
        "lm_loss": lm_loss.detach(),
        "correct": (gap > 0).sum().to(loss.dtype),
        "margin": gap.sum(),
        "reward": rewards.where(counted, 0.0).sum(),
    }
    highest, lowest = torch.stack((rewards, -rewards)).where(counted, -torch.inf).amax(1)
    return Statistics(sums, {"max_reward": highest, "negative_reward": lowest})
