"""MetaRM's objective: how far apart the rewards of each prompt's samples are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from rmfast.kernels import difference_loss
from rmfast.models.network import Outputs, Reads
from rmfast.objectives.base import BatchCounts, BatchTotals, Statistics


class SamplePack(Protocol):
    """What the objective reads of a pack: the prompt group of each of the S scores, numbered from 0 in order."""

    @property
    def scored(self) -> Tensor: ...
    @property
    def group(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class DifferenceObjective:
    """The difference loss J (Part II, equation 11), mean over the global batch's prompts. MetaRM raises it.

    Args:
        normaliser: "k2" as in the paper; "pairs" divides by k (k - 1) / 2, which makes J the mean over pairs.
        impl: of the kernels.
    """

    normaliser: Literal["k2", "pairs"] = "k2"
    impl: str = "auto"
    batch_term: ClassVar[None] = None

    def reads(self, pack: SamplePack) -> Reads:
        """See `Objective`."""
        return Reads(scores=pack.scored)

    def __call__(self, outputs: Outputs, pack: SamplePack, totals: BatchTotals) -> tuple[Tensor, Statistics]:
        """The pack's share of the global batch's J.

        Args:
            outputs: scores [S, M]; with M heads J is the mean over heads.
            totals: of the global batch.

        Returns:
            J's share (a scalar that carries gradients) and detached statistics.
        """
        # Scores of no response are alone in their groups: they add 0, and count in the mean that is undone here.
        groups = pack.group[-1] + 1
        heads = outputs.scores.unbind(1)
        each = [difference_loss(head, pack.group, normaliser=self.normaliser, impl=self.impl) for head in heads]
        loss = torch.stack(each).mean() * groups / totals.groups
        variance = difference_variance(outputs.scores.detach().mean(1), pack.group) / totals.groups
        return loss, Statistics({"loss": loss.detach(), "variance": variance.to(loss.dtype)})

    def metrics(self, values: Mapping[str, float], totals: BatchCounts) -> dict[str, float]:
        """See `Objective`."""
        return {"difference_loss": values["loss"], "reward_difference_variance": values["variance"]}


def difference_variance(rewards: Tensor, group: Tensor) -> Tensor:
    """Variance of r_i - r_j over the ordered pairs i != j of each group's samples, summed over groups.

    Differences come with both signs, so their mean is 0 and their variance the mean of (r_i - r_j)^2, which is twice
    the unbiased variance of the group's rewards. A group of one adds 0.

    Args:
        rewards: [S]. group: int [S].
    """
    same = (group[:, None] == group).to(rewards.dtype)
    size = same.sum(1)
    deviation = rewards - same @ rewards / size
    return (2 * deviation.square() / (size - 1).clamp(min=1)).sum()
