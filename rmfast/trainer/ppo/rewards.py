"""From reward models' scores to the reward of each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rmfast.evaluation.combine import Rule, combined_scores
from rmfast.trainer.ppo.moments import Moments
from rmfast.trainer.ppo.packed import answer_of, last_tokens

Truncated = Literal["zero", "penalty", "bootstrap", "mask"]


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """What becomes of a score.

    Args:
        max_new_tokens: of an answer.
        rule, k: how several reward models' scores become one (see `rmfast.evaluation.combine`).
        truncated: what a cut answer gets: "zero", a score of 0; "penalty", `truncated_score`; "bootstrap", the score of
            the cut text (and, with GAE, the value of what might have followed: `with_bootstrap`); "mask": it takes no
            part in anything.
        truncated_score: see `truncated`.
        clip: scores are clipped to +-clip; 0 for none.
        overlong_buffer: the last tokens before `max_new_tokens` in which the penalty grows; 0 for none.
        overlong_penalty: what an answer of `max_new_tokens` loses.
    """

    max_new_tokens: int
    rule: Rule = "mean"
    k: float = 1.0
    truncated: Truncated = "zero"
    truncated_score: float = -1.0
    clip: float = 0.0
    overlong_buffer: int = 0
    overlong_penalty: float = 1.0


class Scored(NamedTuple):
    """scores fp64 [B], 0 where an answer is masked; kept bool [B], False where it is; each reward model's moments with
    the batch taken in, None where scores are not normalised; members fp64 [B, M], the scores that were combined."""

    scores: Tensor
    kept: Tensor
    moments: tuple[Moments, ...] | None
    members: Tensor


def score_answers(
    raw: Tensor,
    lengths: Tensor,
    cut: Tensor,
    groups: Tensor,
    options: RewardOptions,
    moments: Sequence[Moments] | None = None,
) -> Scored:
    """The scores that answers are trained for.

    Each reward model's moments take in the batch, all but masked answers; its raw scores are normalised by them; the
    rule makes one of all; this is clipped, loses the overlong penalty, and is replaced where an answer is cut. Sources:
    Secrets of RLHF Part I, equation 18, and its code's order (moments first); DAPO (Yu et al. 2025), equation 13, for
    the penalty.

    Args:
        raw: [B, M], of M reward models. What a masked answer has does not matter, even nan.
        lengths: int64 [B], response tokens, the eos among them.
        cut: bool [B], whether an answer's stop reason is its length: neither the width nor the last token tells.
        groups: int64 [B], the prompt of each answer.
        moments: of each reward model's scores before; None for no normalisation.
    """
    kept = ~cut if options.truncated == "mask" else torch.ones_like(cut)
    members, after = torch.where(kept[:, None], raw.double(), 0), None
    if moments is not None:
        after = tuple(one.updated(column) for one, column in zip(moments, raw[kept].T, strict=True))
        members = torch.stack([one.normalised(column) for one, column in zip(after, members.T, strict=True)], 1)
    scores = torch.zeros(len(raw), dtype=torch.float64)
    scores[kept] = torch.from_numpy(
        combined_scores(members[kept].T.numpy(), groups[kept].numpy(), options.rule, options.k)
    )
    if options.clip:
        scores = scores.clamp(-options.clip, options.clip)
    if options.overlong_buffer:
        beyond = lengths - (options.max_new_tokens - options.overlong_buffer)
        scores = scores - options.overlong_penalty * (beyond.double() / options.overlong_buffer).clamp(min=0)
    if options.truncated in ("zero", "penalty"):
        scores = torch.where(cut, 0.0 if options.truncated == "zero" else options.truncated_score, scores)
    return Scored(torch.where(kept, scores, 0), kept, after, members)


def token_rewards(
    scores: Tensor, lengths: Tensor, kept: Tensor, old_log_prob: Tensor, reference: Tensor, *, kl: float
) -> Tensor:
    """fp64 [T]: -kl (old_log_prob - reference) at every token of an answer, the eos too (the estimator k1), and its
    score at its last token, which no clip of scores touches. 0 where an answer is masked.

    Source: Secrets of RLHF Part I, equation 19.

    Args:
        scores: [B]. lengths: int64 [B]. kept: bool [B].
        old_log_prob, reference: [T], of the policy that sampled and of the reference. What masked answers have does not
            matter, even nan.
        kl: the coefficient; 0 where the penalty is not part of the reward.
    """
    penalty = -kl * (old_log_prob.double() - reference.double())
    rewards = penalty.index_add(0, last_tokens(lengths), scores.double())
    return torch.where(kept[answer_of(lengths)], rewards, 0)


def with_bootstrap(rewards: Tensor, lengths: Tensor, cut: Tensor, after: Tensor, *, gamma: float) -> Tensor:
    """fp64 [T]: rewards where gamma V(state after the last token) joins a cut answer's last reward, for `gae` alone:
    the rewards that are logged are those without.

    Args:
        rewards: [T]. lengths: int64 [B]. cut: bool [B].
        after: [B], values of the states after the last tokens. What answers that ended have there is not read.
    """
    return rewards.index_add(0, last_tokens(lengths), torch.where(cut, gamma * after.double(), 0))
