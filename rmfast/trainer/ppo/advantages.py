"""How much better than expected a token was: estimators of advantages, and figures of them.

Tokens are packed answer after answer [T], `lengths` int64 [B] says how many each answer has. A masked answer (`kept`
False) gets advantages of 0 and takes part in nothing, whatever its tokens have, even nan.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rmfast import kernels
from rmfast.trainer.ppo.moments import Moments
from rmfast.trainer.ppo.packed import answer_of, sums

ROUNDING = 1e-6
"""Spread of rewards, as a share of the largest one, that is fp32's rounding: equal answers may differ by it, as they
are other rows of a matmul."""


def gae(
    rewards: Tensor, values: Tensor, lengths: Tensor, kept: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages fp64 [T] and returns A + V fp64 [T], what the critic is to learn.

    The value after an answer's end is 0. Of a cut answer with a bootstrap `with_bootstrap` has put gamma V(state after
    the last token) into its last reward, which is the same as that value in the last delta; so it is in the advantages
    and, through A + V, in the returns. It has to be in both: were it missing from the returns, the critic would learn
    that answers end where they are cut, against what the deltas assume (Pardo et al. 2018). Returns are never clipped;
    the value loss clips the new value around the old.

    Sources: Schulman et al. 2015, equation 16; Secrets of RLHF Part I.

    Args:
        rewards: [T]. values: [T], V of the state before each token, when the answers were sampled.
    """
    inside = kept[answer_of(lengths)]
    advantages, returns = kernels.gae(rewards.double(), values.double(), lengths, gamma=gamma, lam=lam)
    return torch.where(inside, advantages, 0), torch.where(inside, returns, 0)


def reinforce(rewards: Tensor, lengths: Tensor, kept: Tensor, *, gamma: float) -> Tensor:
    """fp64 [T]: the discounted sum of an answer's rewards from each token on, without a baseline (Williams 1992)."""
    return gae(rewards, torch.zeros_like(rewards), lengths, kept, gamma=gamma, lam=1.0)[0]


def rloo(rewards: Tensor, lengths: Tensor, kept: Tensor, groups: Tensor) -> Tensor:
    """fp64 [T]: an answer's whole reward less the mean of its prompt's other answers, at each of its tokens; 0 where
    there are no others. Source: Kool et al. 2019; Ahmadian et al. 2024.

    Args:
        rewards: [T]. groups: int64 [B], the prompt of each answer.
    """
    advantages = torch.zeros(len(lengths), dtype=torch.float64)
    for members, deviation in _deviations(rewards, lengths, kept, groups):
        if len(members) > 1:  # R - (sum - R) / (n - 1) = (R - mean) n / (n - 1)
            advantages[members] = deviation * len(members) / (len(members) - 1)
    return advantages[answer_of(lengths)]


def grpo(rewards: Tensor, lengths: Tensor, kept: Tensor, groups: Tensor) -> Tensor:
    """fp64 [T]: an answer's whole reward less the mean of its prompt's answers, in units of their standard deviation
    (Bessel's), at each of its tokens; 0 in a group without spread beyond rounding. Source: Shao et al. 2024, section
    4.1.2.

    Args:
        rewards: [T]. groups: int64 [B], the prompt of each answer.
    """
    advantages = torch.zeros(len(lengths), dtype=torch.float64)
    whole = sums(rewards, lengths)
    for members, deviation in _deviations(rewards, lengths, kept, groups):
        if not _even(whole[members]):
            advantages[members] = deviation / (deviation.square().sum() / (len(members) - 1)).sqrt()
    return advantages[answer_of(lengths)]


def _deviations(rewards: Tensor, lengths: Tensor, kept: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each group with answers that are kept: which they are, and their rewards less the mean, exactly 0 where all
    are equal."""
    whole = sums(rewards, lengths)
    for members in _members(kept, groups):
        apart = whole[members] - whole[members[0]]
        yield members, apart - apart.mean()


def _even(values: Tensor) -> bool:
    """Whether values [n] differ by rounding at most."""
    return bool(values.max() - values.min() <= ROUNDING * values.abs().max())


def _members(kept: Tensor, groups: Tensor) -> Iterator[Tensor]:
    """int64 [n] for each group with answers that are kept: which they are."""
    for group in groups[kept].unique():
        yield torch.nonzero((groups == group) & kept)[:, 0]


def whitened(advantages: Tensor, mask: Tensor) -> Tensor:
    """fp64 [T]: advantages less their mean, in units of their population standard deviation, over the tokens of the
    mask; 0 elsewhere. Only centred where there are fewer than two tokens or no spread.

    Args:
        advantages: [T], of a whole rollout, of all ranks. mask: bool [T].
    """
    moments = Moments.of(advantages[mask])
    spread = (moments.squares / moments.count) ** 0.5 if moments.squares else 1.0
    return torch.where(mask, (advantages.double() - moments.mean) / spread, 0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - var(returns - values) / var(returns) over the tokens of the mask: 1 for a critic that knows the returns, 0
    for one that knows nothing, below 0 for worse than that. 0 where the returns have no spread."""
    known = Moments.of(returns[mask]).squares
    return 1 - Moments.of((returns - values)[mask]).squares / known if known else 0.0


def flat_group_share(scores: Tensor, kept: Tensor, groups: Tensor) -> float:
    """Share of prompts whose answers all have one score, so that a baseline of the prompt's answers leaves nothing to
    learn; answers that are masked do not count, and a prompt with one other or none is flat. 0 without prompts.

    Args:
        scores: [B], as the advantages read them. kept: bool [B]. groups: int64 [B].
    """
    prompts = len(groups.unique())
    uneven = sum(not _even(scores[members]) for members in _members(kept, groups))
    return 1 - uneven / prompts if prompts else 0.0
