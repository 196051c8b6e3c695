"""Several reward models as one: how their rewards are combined at evaluation, and how far they agree. Pure numpy.

Shapes: M members, R responses, E edges. A BT reward is known up to a constant, and its scale differs from member to
member (papers compare no rewards across models for that reason): `standardise` first where that should not matter.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from rmfast.data.edge_columns import Edges
from rmfast.evaluation.metrics import Floats, pairwise_metrics

Rule = Literal["mean", "median", "worst", "mean-k-std", "majority"]
RULES: tuple[Rule, ...] = get_args(Rule)

# What a vote, which gives no reward, has no figure for.
OF_REWARDS = {
    *("loss", "margin", "calibration_error", "length_correlation"),
    *("mean_reward", "std_reward", "min_reward", "max_reward", "mean_better", "mean_worse"),
}


def standardise(rewards: ArrayLike) -> Floats:
    """Each member's rewards [M, R] less their mean over the responses, in units of their population std (ours).

    A member that gives every response the same becomes 0. Rewards that are not finite do not count and stay so.
    """
    r = np.asarray(rewards, dtype=np.float64)
    known = np.where(np.isfinite(r), r, np.nan)
    centre = np.nanmean(known, axis=1, keepdims=True)
    spread = np.nanstd(known, axis=1, keepdims=True)
    return (r - centre) / np.where(spread > 0, spread, 1.0)


def combine(rewards: ArrayLike, rule: Rule, k: float = 1.0) -> Floats:
    """One reward a response [R] of the members' [M, R].

    "mean"; "median" (of an even number the mean of the middle two); "worst", the least; "mean-k-std", the mean less k
    population standard deviations over members. A reward that is not finite makes the combined one so.

    Raises:
        ValueError: "majority", which gives a verdict on pairs and no reward: see `majority`.
    """
    r = np.asarray(rewards, dtype=np.float64)
    r = np.where(np.isfinite(r), r, np.nan)
    if rule == "mean":
        return r.mean(0)
    if rule == "median":
        return np.median(r, axis=0)
    if rule == "worst":
        return r.min(0)
    if rule == "mean-k-std":
        return r.mean(0) - k * r.std(0)
    raise ValueError(f"{rule} gives no reward to a response")


def majority(rewards: ArrayLike, better: ArrayLike, worse: ArrayLike) -> Floats:
    """Votes for each edge less votes against it [E], of members with rewards [M, R]: see `ballot`."""
    r = np.asarray(rewards, dtype=np.float64)
    r = np.where(np.isfinite(r), r, np.nan)
    return ballot(r[:, np.asarray(better, dtype=np.intp)] - r[:, np.asarray(worse, dtype=np.intp)])


def ballot(gaps: ArrayLike) -> Floats:
    """Votes for each edge less votes against it [E], of members' gaps r(better) - r(worse) [M, E].

    A member that scores both sides the same abstains. The edge is won where the difference is above 0; as many votes
    for as against are a tie. An edge with a gap that is not finite is nan.
    """
    g = np.asarray(gaps, dtype=np.float64)
    return np.sign(np.where(np.isfinite(g), g, np.nan)).sum(0)


def vote_scores(rewards: ArrayLike, groups: ArrayLike) -> Floats:
    """A vote as a score of each response [R], of members' rewards [M, R]: votes for it less votes against it, a mean
    over the members and over the other responses of its group; in [-1, 1], and 0 where there is no other.

    1 + it, halved, is the share of members that prefer the response to another one, of which a tie is half a vote. It
    depends on the members' rankings alone. Source: the symmetric Borda score (Zwicker, Introduction to the theory of
    voting, in Handbook of Computational Social Choice, 2016), over the members' number and that of the others.

    Args:
        groups: integers [R], equal for responses to one prompt.
    """
    r, g = np.asarray(rewards, dtype=np.float64), np.asarray(groups)
    one, other = pairs_within(g)
    votes = majority(r, one, other)
    total = np.bincount(one, votes, len(g)) - np.bincount(other, votes, len(g))
    others = np.bincount(np.concatenate((one, other)), minlength=len(g))
    return total / (len(r) * np.maximum(others, 1))


def pairs_within(groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both responses of every pair of a group, once: numbers below R [P], of groups [R] as in `vote_scores`."""
    g = np.asarray(groups)
    order = np.argsort(g, kind="stable")
    pairs = [
        group[np.stack(np.triu_indices(len(group), 1))]
        for group in np.split(order, np.flatnonzero(np.diff(g[order])) + 1)
    ]
    one, other = np.concatenate(pairs, 1)
    return one, other


def combined_scores(rewards: ArrayLike, groups: ArrayLike, rule: Rule, k: float = 1.0) -> Floats:
    """One score a response [R] by any rule, of members' rewards [M, R]: `combine`, or `vote_scores`."""
    return vote_scores(rewards, groups) if rule == "majority" else combine(rewards, rule, k)


def combined_metrics(
    rewards: ArrayLike, edges: Edges, rule: Rule, *, k: float = 1.0, center: float = 0.0
) -> dict[str, float | int | str]:
    """`pairwise_metrics` of the members together, of rewards [M, R]; under "majority" those that need no reward."""
    r = np.asarray(rewards, dtype=np.float64)
    shared: dict[str, Any] = {"groups": edges.group}
    if rule != "majority":
        values = {"weight": edges.weight, "margin": edges.margin, "target": edges.target, "lengths": edges.length}
        return pairwise_metrics(combine(r, rule, k), edges.better, edges.worse, center=center, **values, **shared)
    # Each edge as two responses, of which the better one has the vote for its reward.
    votes = majority(r, edges.better, edges.worse)
    ends = np.stack((edges.better, edges.worse), 1).reshape(-1)
    scores = np.stack((votes, np.zeros_like(votes)), 1).reshape(-1)
    place = np.arange(len(votes)) * 2
    metrics = pairwise_metrics(scores, place, place + 1, lengths=edges.length[ends], **shared)
    whole = {"responses": r.shape[1], "nonfinite": int((~np.isfinite(r)).any(0).sum())}
    return {key: value for key, value in metrics.items() if key not in OF_REWARDS} | whole


def agreement(gaps: ArrayLike) -> Floats:
    """Share of edges on which two members prefer the same side [M, M], of gaps r(better) - r(worse) [M, E].

    An edge that either member did not score (nan) does not count; nan where none is left. A tie is a third
    preference.
    """
    g = np.asarray(gaps, dtype=np.float64)
    side, known = np.sign(g), np.isfinite(g)
    shares = np.full((len(g), len(g)), np.nan)
    for m in range(len(g)):
        both = known[m] & known
        same = (side[m] == side) & both
        count = both.sum(1)
        shares[m, count > 0] = same.sum(1)[count > 0] / count[count > 0]
    return shares


def mean_agreement(gaps: ArrayLike) -> float:
    """Mean of `agreement` over pairs of different members; nan where no two of them scored an edge."""
    shares = agreement(gaps)
    off = shares[~np.eye(len(shares), dtype=bool)]
    return float(np.nanmean(off)) if np.isfinite(off).any() else float("nan")
