"""The language model's objective on demonstrations (supervised fine-tuning)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rmfast.models.network import Outputs, Reads
from rmfast.objectives.base import BatchCounts, BatchTotals, Statistics, TargetTensors, token_count


class TargetPack(Protocol):
    """What the objective reads of a pack."""

    @property
    def targets(self) -> TargetTensors: ...


@dataclass(frozen=True, kw_only=True)
class SFTObjective:
    """Negative log-likelihood of the targets, a mean over those of the global batch: what transformers' causal models
    give where labels are masked and `num_items_in_batch` is that of all ranks."""

    @property
    def batch_term(self) -> None:
        """None: see `Objective`."""

    def reads(self, pack: TargetPack) -> Reads:
        """See `Objective`."""
        rows, ids = pack.targets.rows, pack.targets.ids
        return Reads(scores=rows[:0], log_prob=(rows, ids), entropy=True)

    def __call__(self, outputs: Outputs, pack: TargetPack, totals: BatchTotals) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's loss.

        Args:
            outputs: log_prob and entropy [L]; targets of -1 do not count.
            totals: of the global batch; `lm_tokens` counts its targets.

        Returns:
            Loss (a scalar that carries gradients) and detached statistics.
        """
        log_prob, entropy, counted = outputs.log_prob, outputs.entropy, pack.targets.ids >= 0
        assert log_prob is not None and entropy is not None
        loss = -log_prob.where(counted, 0.0).sum() / token_count(totals)
        spread = entropy.detach().where(counted, 0.0).sum()
        return loss, Statistics({"loss": loss.detach(), "entropy": spread})

    def metrics(self, values: Mapping[str, float], totals: BatchCounts) -> dict[str, float]:
        """See `Objective`."""
        return {
            "loss": values["loss"],
            "entropy": values["entropy"] / max(totals.lm_tokens, 1),
            "trained_tokens": totals.lm_tokens,
        }
