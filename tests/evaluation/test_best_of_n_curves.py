"""Proxy and gold over N: against brute force over all subsets, against closed forms, and intervals that cover."""

import math
from itertools import combinations

import numpy as np
import pytest

from rmfast.data.example import Example
from rmfast.errors import UserError
from rmfast.evaluation.best_of_n.curves import BestOfN, candidates_of, counts_to, curves
from rmfast.evaluation.best_of_n.disagree import Answer, disagreements
from rmfast.evaluation.best_of_n.rewards import combined_rewards, majority_score
from rmfast.evaluation.combine import RULES, combine
from rmfast.evaluation.diagnostics.selection import Candidates
from rmfast.jsonio import from_json

RNG = np.random.default_rng


def examples_of(prompts: int, responses: int) -> list[Example]:
    return [Example(f"prompt {p}", tuple(f"answer {r}" for r in range(responses))) for p in range(prompts)]


def found_of(proxies: np.ndarray, gold: np.ndarray, **options: bool) -> BestOfN:
    """Curves of proxies [M, P, n] against gold [P, n]."""
    rows = list(proxies.swapaxes(0, 1))
    candidates = candidates_of(examples_of(*gold.shape), rows, list(gold))
    return curves(candidates, [f"m{m}" for m in range(len(proxies))], **options)


def values(figures: list) -> list[float]:
    return [one.value for one in figures]


def brute(scores: np.ndarray, worth: np.ndarray, n: int) -> float:
    """Mean worth of the best by score over all subsets of n; of equal ones their mean."""
    picks = []
    for some in combinations(range(len(scores)), n):
        best = max(scores[i] for i in some)
        picks.append(np.mean([worth[i] for i in some if scores[i] == best]))
    return float(np.mean(picks))


@pytest.mark.parametrize("levels", [1, 2, 4, 1000])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_figure_is_the_mean_over_all_subsets(size: int, levels: int) -> None:
    rng = RNG(levels + size)
    proxy = rng.integers(0, levels, (1, 5, size)).astype(float)
    gold = rng.normal(size=(5, size))
    found = found_of(proxy, gold)
    assert found.counts == {1: [1], 3: [1, 2, 3], 8: [1, 2, 4, 8]}[size]
    (curve,) = found.members
    for worth, figures in ((gold, curve.gold), (proxy[0], curve.proxy), (None, found.ceiling)):
        scores, worth = (gold, gold) if worth is None else (proxy[0], worth)
        unit = worth.std() or 1.0
        gains = [[(brute(*row, n) - row[1].mean()) / unit for n in found.counts]
                 for row in zip(scores, worth, strict=True)]  # fmt: skip
        assert values(figures) == pytest.approx(np.mean(gains, 0), abs=1e-12)
    below = [[brute(*row, n) < row[1].mean() - 1e-9 for row in zip(proxy[0], gold, strict=True)] for n in found.counts]
    assert [share.value for share in curve.below] == pytest.approx(np.mean(below, 1))
    assert found.gold_std == pytest.approx(gold.std()) and curve.proxy_std == pytest.approx(proxy[0].std())


def test_gold_that_picks_itself_gains_the_expected_maximum() -> None:
    order = np.array([RNG(seed).permutation(16.0 + np.arange(16)) for seed in range(6)])
    found = found_of(order[None], order)
    (curve,) = found.members
    expected = [(n * 17 / (n + 1) - 17 / 2) / math.sqrt((16**2 - 1) / 12) for n in (1, 2, 4, 8, 16)]
    assert values(curve.gold) == pytest.approx(expected) and values(found.ceiling) == pytest.approx(expected)
    assert curve.peak == 16 and (curve.fall.value, curve.fall.low, curve.fall.high) == (0, 0, 0)


def test_a_proxy_that_knows_nothing_leaves_gold_where_it_is() -> None:
    rng = RNG(1)
    found = found_of(rng.normal(size=(1, 400, 16)), rng.normal(size=(400, 16)))
    (curve,) = found.members
    assert all(one.low <= 0 <= one.high for one in curve.gold) and max(map(abs, values(curve.gold))) < 0.1
    assert curve.proxy[-1].value > 1.6 and curve.gold[-1].side == 0


def test_intervals_cover_the_truth() -> None:
    """gold = proxy + noise: the gain is that of the maximum of N normal deviates, over the std of gold."""
    maximum = {1: 0.0, 2: 0.56419, 4: 1.02938, 8: 1.42360}
    covered = []
    for seed in range(60):
        rng = RNG(seed)
        proxy = rng.normal(size=(1, 50, 8))
        gold = proxy[0] + rng.normal(size=(50, 8))
        for n, one in zip((1, 2, 4, 8), found_of(proxy, gold).members[0].gold, strict=True):
            covered.append(one.low <= maximum[n] / math.sqrt(2) <= one.high)
    assert 0.90 < np.mean(covered) <= 1


def test_an_over_optimised_proxy_has_a_peak_and_a_fall() -> None:
    rng = RNG(2)
    gold = rng.normal(size=(300, 32))
    hacked = rng.random((300, 32)) < 0.06
    proxy = np.where(hacked, 9.0, gold + 0.3 * rng.normal(size=gold.shape))
    curve = found_of(proxy[None], gold).members[0]
    assert curve.peak in (4, 8) and curve.fall.high < 0 and curve.proxy[-1].low > curve.proxy[-2].value
    assert curve.fall.value == pytest.approx(curve.gold[-1].value - max(values(curve.gold)))


def test_of_several_members_each_alone_and_every_rule() -> None:
    rng = RNG(3)
    gold = rng.normal(size=(40, 8))
    proxies = gold + rng.normal(size=(3, 40, 8)) * np.array([1.0, 1.0, 5.0])[:, None, None]
    found = found_of(proxies, gold)
    assert [curve.name for curve in found.members] == ["m0", "m1", "m2"]
    assert [curve.name for curve in found.rules] == list(RULES)
    for curve in found.rules[:4]:
        alone = found_of(np.array([[combine(row, curve.name) for row in proxies.swapaxes(0, 1)]]), gold).members[0]
        assert curve.gold == alone.gold and curve.proxy == alone.proxy
    even = found_of(proxies, gold, standardised=True).rules[0]
    assert even.gold[-1].value > found.rules[0].gold[-1].value + 0.05  # the loud member no longer decides
    assert not found_of(proxies[:1], gold).rules


def test_kl_and_counts() -> None:
    found = found_of(RNG(4).normal(size=(1, 3, 6)), RNG(5).normal(size=(3, 6)))
    assert found.counts == [1, 2, 4, 6] and counts_to(64) == [1, 2, 4, 8, 16, 32, 64]
    assert found.kl == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4, math.log(6) - 5 / 6])


def test_rows_that_some_scorer_could_not_score_or_of_another_size_are_counted() -> None:
    rng = RNG(6)
    rewards, gold = [rng.normal(size=(2, 4)) for _ in range(6)], [rng.normal(size=4) for _ in range(6)]
    rewards[1][1, 2], gold[3][0] = np.nan, np.inf
    rewards[4], gold[4] = rewards[4][:, :3], gold[4][:3]
    examples = examples_of(5, 4) + examples_of(1, 4)  # the last row has the first's prompt
    candidates = candidates_of(examples, rewards, gold)
    assert candidates.left_out == 2
    found = curves(candidates, ["a", "b"])
    assert (found.rows, found.rows_left_out, found.prompts) == (3, 3, 2)
    with pytest.raises(UserError, match="no row of 1 has finite rewards"):
        candidates_of(examples[:1], [np.full((1, 2), np.nan)], [np.zeros(2)])


def test_one_prompt_has_no_interval_and_constant_rewards_no_gain() -> None:
    found = found_of(np.zeros((1, 1, 4)), np.arange(4.0)[None])
    assert np.isnan(found.members[0].gold[-1].low) and values(found.members[0].proxy) == [0, 0, 0]
    assert values(found.members[0].gold) == pytest.approx([0, 0, 0])


def test_json_goes_there_and_back() -> None:
    found = found_of(RNG(7).normal(size=(2, 9, 4)), RNG(8).normal(size=(9, 4)))
    assert from_json(BestOfN, found.to_json()) == found


def test_majority_is_copelands_score() -> None:
    circle = np.array([[3.0, 2, 1, 0], [1, 3, 2, 0], [2, 1, 3, 0]])  # each of three beats one of the others twice
    assert majority_score(circle).tolist() == [1, 1, 1, -3]
    # Two members barely prefer the first, one is all for the second: the mean picks that, the majority does not.
    rewards = np.array([[0.1, 0.0, -1], [0.1, 0.0, -1], [0.0, 9.0, -1]])
    assert majority_score(rewards).tolist() == [2, 0, -2] and combine(rewards, "mean").argmax() == 1
    assert majority_score([[1.0, 1.0]]).tolist() == [0, 0]
    broken = majority_score([[1.0, np.nan, 3.0], [1.0, 2.0, 3.0]])
    assert np.isnan(broken[1]) and broken[[0, 2]].tolist() == [-1, 1]


def test_members_are_standardised_over_all_rows_and_not_by_row() -> None:
    rows = [np.array([[0.0, 2.0], [0.0, 0.0]]), np.array([[4.0], [6.0]])]
    one, other = combined_rewards(rows, "mean", standardised=True)
    first, second = np.array([0, 2, 4.0]), np.array([0, 0, 6.0])
    want = ((first - 2) / first.std() + (second - 2) / second.std()) / 2
    assert np.concatenate([one, other]) == pytest.approx(want)
    assert combined_rewards([], "mean", standardised=True) == []


def test_candidates_of_files_work_as_well() -> None:
    gold = [np.arange(3.0)] * 2
    found = curves(Candidates([gold], gold, np.arange(2)), ["a"])
    assert found.members[0].gold == found.ceiling


def test_disagreements_are_ordered_by_what_gold_loses() -> None:
    chat = [{"role": "user", "content": "hello"}]
    examples = [*examples_of(3, 3), Example(chat, ("x", "y", "z"))]
    gold = [np.array(row, dtype=float) for row in ([0, 1, 2], [2, 1, 0], [5, 0, np.nan], [9, 4, 4])]
    proxy = [np.array(row, dtype=float) for row in ([0, 1, 0], [7, 1, 0], [0, 1, 2], [0, 3, 3])]
    first, second = disagreements(examples, proxy, gold)
    assert first.prompt == "user: hello" and second.prompt == "prompt 0"
    assert (first.of_proxy, first.of_gold) == (Answer("y", 3.0, 4.0), Answer("x", 0.0, 9.0))
    assert second.of_proxy.text == "answer 1" and len(disagreements(examples, proxy, gold, most=1)) == 1
