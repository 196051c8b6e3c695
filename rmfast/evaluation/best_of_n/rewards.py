"""One reward a response, of several members': what best-of-N chooses by."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rmfast.evaluation.combine import Rule, ballot, combine, standardise
from rmfast.evaluation.metrics import Floats


def combined_rewards(
    rewards: Sequence[Floats], rule: Rule, *, k: float = 1.0, standardised: bool = False
) -> list[Floats]:
    """Each row's combined rewards [N]; nan where a member's is not finite.

    Args:
        rewards: of each row [members, N].
        k: of "mean-k-std".
        standardised: bring each member to mean 0 and std 1 over all rows first.
    """
    if standardised and rewards:
        ends = np.cumsum([of_row.shape[1] for of_row in rewards])[:-1]
        rewards = np.split(standardise(np.concatenate(rewards, axis=1)), ends, axis=1)
    return [majority_score(of_row) if rule == "majority" else combine(of_row, rule, k) for of_row in rewards]


def majority_score(rewards: ArrayLike) -> Floats:
    """Responses that each beats by majority less those that beat it [N], of members' rewards [M, N]: Copeland's score.

    One that beats all others, as the suite best-of-n asks of the best, has the highest. Responses with a reward that is
    not finite are nan and beat nobody.
    """
    r = np.asarray(rewards, dtype=np.float64)
    votes = ballot((r[:, :, None] - r[:, None, :]).reshape(len(r), -1)).reshape(r.shape[1], -1)
    return np.where(np.isfinite(r).all(0), np.nansum(np.sign(votes), axis=1), np.nan)
