"""What is logged of several reward models: how each scores, and how far they agree."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rmfast.evaluation.combine import mean_agreement, pairs_within
from rmfast.trainer.ppo.moments import Moments
from rmfast.trainer.ppo.rewards import Scored
from rmfast.trainer.ppo.watch import mean


def member_prefix(number: int, members: int) -> str:
    """What the names of a member's figures begin with: nothing where there is one alone."""
    return f"member_{number}/" if members > 1 else ""


def of_each(name: str, raw: Tensor) -> dict[str, Tensor]:
    """Each member's rewards [B], by their names; none of one alone. raw: [B, M]."""
    members = raw.shape[1]
    return {f"{member_prefix(m, members)}{name}": raw[:, m] for m in range(members)} if members > 1 else {}


def of_moments(moments: Sequence[Moments]) -> dict[str, float]:
    """The running moments of each reward model."""
    return {
        f"{member_prefix(number, len(moments))}{name}": value
        for number, one in enumerate(moments)
        for name, value in (("reward_mean", one.mean), ("reward_std", one.std))
    }


def of_members(raw: Tensor, scored: Scored, groups: Tensor) -> dict[str, float]:
    """How several reward models score answers, and how far they agree; nothing of one alone.

    Disagreement: the population standard deviation over members of an answer's scores as they are combined, a mean
    over answers. Agreement: share of pairs of answers to one prompt on which two members prefer the same one, a mean
    over pairs of members; nan without a pair.

    Args:
        raw: [B, M]. groups: int64 [B], the prompt of each answer.
    """
    members = raw.shape[1]
    if members == 1:
        return {}
    found: dict[str, float] = {}
    for number, scores in enumerate(raw.T):
        prefix = member_prefix(number, members)
        found |= {f"{prefix}scores": mean(scores), f"{prefix}scores_std": float(scores.std(correction=0))}
    kept = scored.members[scored.kept]
    if not len(kept):
        return found
    one, other = (torch.from_numpy(side) for side in pairs_within(groups[scored.kept].numpy()))
    gaps = (kept[one] - kept[other]).T.numpy()
    return found | {"disagreement": mean(kept.std(1, correction=0)), "agreement": mean_agreement(gaps)}
