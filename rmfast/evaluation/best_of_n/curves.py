"""Proxy reward against a held-out gold reward over N: does choosing by the proxy still choose what gold likes?

A model (the proxy) picks the best of N responses; a gold scorer that it never saw says how good the pick is. As N grows
the proxy's reward of the pick must rise; where gold's bends down, the proxy is over-optimised (Gao et al., 2023; for
ensembles Coste et al., 2024). Each figure is exact over all subsets of N of a prompt's n responses (`best_of_n`), and a
gain over N = 1, a random response, in units of the std of that reward over all responses: so models compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmfast.data.example import Example
from rmfast.errors import UserError
from rmfast.evaluation.best_of_n.rewards import combined_rewards
from rmfast.evaluation.combine import RULES
from rmfast.evaluation.diagnostics.resample import Figure, Indices, Share, by_prompt, figure, resampled, shares
from rmfast.evaluation.diagnostics.selection import Candidates, best_of_n
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.suites.base import group_key
from rmfast.jsonio import to_json

SAME = 1e-9  # stds by which rounding may move a reward


@dataclass(frozen=True)
class Curve:
    """One way to choose, by N.

    Attributes:
        proxy, gold: [K], gain of the pick's reward over a random response's.
        below: [K], share of rows whose pick is below a random response by gold.
        peak: the N of the greatest gold. fall: gold at the last N less that at `peak`, 0 where that is the last.
        proxy_std: of the proxy's rewards over all responses, the unit of `proxy`.
    """

    name: str
    proxy: list[Figure]
    gold: list[Figure]
    below: list[Share]
    peak: int
    fall: Figure
    proxy_std: float


@dataclass(frozen=True)
class BestOfN:
    """Curves on the same rows: `members` alone, and `rules` that combine several (none of one member).

    Attributes:
        rows, prompts: counts. rows_left_out: not scored by all, or with another number of responses.
        counts: the K values of N: 1, 2, 4, ... and n, the number of responses of a row.
        kl: [K], log N - (N - 1) / N, nats: at most so far is best-of-N from the policy, in KL divergence (Stiennon et
            al., 2020; a bound by Beirami et al., 2024).
        ceiling: [K], gain where gold itself picks. gold_std: the unit of gold.
    """

    rows: int
    rows_left_out: int
    prompts: int
    counts: list[int]
    kl: list[float]
    ceiling: list[Figure]
    gold_std: float
    members: list[Curve]
    rules: list[Curve]

    def to_json(self) -> dict[str, Any]:
        """The content of a file."""
        return to_json(self)


def candidates_of(examples: Sequence[Example], rewards: Sequence[Floats], gold: Sequence[Floats]) -> Candidates:
    """Rows whose rewards are all finite.

    Args:
        rewards: of each row [members, N]. gold: of each row [N].

    Raises:
        UserError: no such row.
    """
    known = [np.isfinite(r).all() and np.isfinite(g).all() for r, g in zip(rewards, gold, strict=True)]
    kept = np.flatnonzero(known).tolist()
    if not kept:
        raise UserError(f"no row of {len(gold):,} has finite rewards from every model and from gold")
    numbers: dict[str, int] = {}
    prompt = [numbers.setdefault(group_key(examples[row]), len(numbers)) for row in kept]
    scores = [[rewards[row][m] for row in kept] for m in range(len(rewards[0]))]
    left_out = len(gold) - len(kept)
    return Candidates(scores, [gold[row] for row in kept], np.array(prompt, dtype=np.intp), left_out)


def curves(candidates: Candidates, names: Sequence[str], *, k: float = 1.0, standardised: bool = False) -> BestOfN:
    """Proxy and gold over N, for each member alone and for every rule that combines several.

    Rows of the most frequent number of responses count. Intervals are 95 %, from a bootstrap over prompts; the units
    are held fixed in it.

    Args:
        names: of the members, in the candidates' order.
        k, standardised: how rules combine, see `combined_rewards`.
    """
    sizes = np.array([row.size for row in candidates.gold])
    occurs = np.bincount(sizes)
    size = int(occurs.size - 1 - np.argmax(occurs[::-1]))  # of equally frequent numbers the largest
    kept = np.flatnonzero(sizes == size)
    gold = np.array([candidates.gold[row] for row in kept])  # [P, n]
    members = np.array([[of_member[row] for row in kept] for of_member in candidates.scores])  # [M, P, n]
    prompt = np.unique(candidates.prompt[kept], return_inverse=True)[1].reshape(-1)
    rules = RULES if len(members) > 1 else ()
    rows = list(members.swapaxes(0, 1))  # [P] of [M, n]
    combined = {rule: np.array(combined_rewards(rows, rule, k=k, standardised=standardised)) for rule in rules}
    counts = counts_to(size)
    gold_std = float(gold.std())
    return BestOfN(
        rows=len(kept),
        rows_left_out=candidates.left_out + len(sizes) - len(kept),
        prompts=int(prompt.max()) + 1,
        counts=counts,
        kl=[float(np.log(n) - (n - 1) / n) for n in counts],
        ceiling=_figures(_gains(gold, gold, counts), prompt),
        gold_std=gold_std,
        members=[_curve(name, of, gold, counts, prompt) for name, of in zip(names, members, strict=True)],
        rules=[_curve(rule, of, gold, counts, prompt) for rule, of in combined.items()],
    )


def counts_to(size: int) -> list[int]:
    """1, 2, 4, ... and `size`."""
    return sorted({*(2**power for power in range(size.bit_length())), size})


def _curve(name: str, proxy: Floats, gold: Floats, counts: Sequence[int], prompt: Indices) -> Curve:
    """Of rewards [P, n]."""
    of_gold = _gains(proxy, gold, counts)
    figures = _figures(of_gold, prompt)
    peak = int(np.argmax([one.value for one in figures]))
    kinds = np.tile(np.arange(len(counts)), len(gold))
    below = (of_gold < -SAME).reshape(-1)
    return Curve(
        name=name,
        proxy=_figures(_gains(proxy, proxy, counts), prompt),
        gold=figures,
        below=shares(below, kinds, np.repeat(prompt, len(counts)), int(prompt.max()) + 1, len(counts)),
        peak=counts[peak],
        fall=_figures(of_gold[:, [-1]] - of_gold[:, [peak]], prompt)[0],
        proxy_std=float(proxy.std()),
    )


def _gains(scores: Floats, values: Floats, counts: Sequence[int]) -> Floats:
    """Expected value [P, K] of the pick by score among N, of scores and values [P, n]: less that of a random response,
    in the values' std."""
    places = np.array(counts) - 1
    expected = np.array([best_of_n(*row)[places] for row in zip(scores, values, strict=True)])
    return np.asarray((expected - expected[:, :1]) / (values.std() or 1.0))


def _figures(gains: Floats, prompt: Indices) -> list[Figure]:
    """Means over rows of gains [P, K], with their intervals; a single prompt has none."""
    sums = by_prompt(np.hstack([gains, np.ones((len(gains), 1))]), prompt, int(prompt.max()) + 1)
    drawn = resampled(sums) if len(sums) > 1 else np.full((1, sums.shape[1]), np.nan)
    return [figure(mean, draws) for mean, draws in zip(gains.mean(0), (drawn[:, :-1] / drawn[:, -1:]).T, strict=True)]
