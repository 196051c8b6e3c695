from dataclasses import replace

import numpy as np
import pytest

from rmfast.evaluation.diagnostics.correlate import centred, pearson, ranks_within
from rmfast.evaluation.diagnostics.length import fit_logistic, length_bias
from rmfast.evaluation.diagnostics.table import table_of
from tests.evaluation.diagnostics.made import RNG, made


def _biased(quality: float, bias: float, edges: int = 5000, longer: float = 0.75):
    """Wins by sigmoid(quality + bias tanh(d / s)), where the better answer is mostly the longer one."""
    rng = RNG(0)
    d = np.round(rng.lognormal(4, 1, edges)) * np.where(rng.random(edges) < longer, 1, -1)
    z = np.tanh(d / np.sqrt(np.mean(d * d)))
    won = rng.random(edges) < 1 / (1 + np.exp(-quality - bias * z))
    base = 10_000.0
    return made([[1.0 if w else -1.0, 0.0] for w in won], [[base + x, base] for x in d])


def _length(result):
    return length_bias(table_of(result))["pairwise"]


def test_planted_bias_is_found_and_taken_out():
    truth = 1 / (1 + np.exp(-0.4))
    found = _length(_biased(0.4, 2.5))
    raw = found.by_side["longer"].value * 0.75 + found.by_side["shorter"].value * 0.25
    assert raw > truth + 0.06
    assert found.at_equal_length.value == pytest.approx(truth, abs=0.03)
    assert found.at_equal_length.low < truth < found.at_equal_length.high
    assert found.length_effect.value == pytest.approx(2.5, abs=0.3)
    assert found.length_effect.low > 2
    assert found.balanced.value < raw - 0.06
    assert found.gap_spearman.low > 0.2
    assert found.matched_share > 0.99


def test_no_bias_is_none():
    found = _length(_biased(0.4, 0.0))
    truth = 1 / (1 + np.exp(-0.4))
    assert found.length_effect.low < 0 < found.length_effect.high
    for name in ("balanced", "matched", "at_equal_length"):
        assert getattr(found, name).low < truth < getattr(found, name).high, name


def test_matching_takes_out_strata_that_differ():
    # Right on small differences, wrong on large ones; shorter better answers come with small differences alone.
    rows = [(1, 1.0)] * 300 + [(-1, 1.0)] * 300 + [(50, -1.0)] * 390 + [(-50, -1.0)] * 10
    found = _length(made([[g, 0.0] for _, g in rows], [[100.0 + d, 100.0] for d, _ in rows]))
    assert found.balanced.value == pytest.approx((300 / 690 + 300 / 310) / 2)
    assert found.matched.value == pytest.approx(0.6) and found.matched_share == 1


def test_strata_that_lack_a_side_do_not_count():
    rows = [(1, 1.0)] * 10 + [(-1, -1.0)] * 10 + [(50, 1.0)] * 20
    found = _length(made([[g, 0.0] for _, g in rows], [[100.0 + d, 100.0] for d, _ in rows]))
    assert found.matched.value == 0.5 and found.matched_share == 0.5


def test_a_model_that_counts_is_a_coin_at_equal_length():
    rng = RNG(2)
    d = rng.integers(1, 100, 1000) * np.where(rng.random(1000) < 0.7, 1, -1)
    found = _length(made([[float(x), 0.0] for x in d], [[200.0 + x, 200.0] for x in d]))
    assert found.by_side["longer"].value == 1 and found.by_side["shorter"].value == 0
    assert found.balanced.value == found.matched.value == 0.5
    assert found.gap_pearson.value == pytest.approx(1)
    assert found.within_pearson.value == pytest.approx(1)
    assert found.longer_wins.value == pytest.approx((d > 0).mean())
    assert found.by_difference[0].value == 0 and found.by_difference[-1].value == 1
    assert sum(own.count for own in found.by_difference) == 1000
    assert found.by_side["longer"].low > 0.99 > 1 - found.by_side["longer"].high


def test_quantiles_hold_their_rows():
    d = np.arange(-50, 50)
    won = d > 20
    found = _length(made([[1.0 if w else -1.0, 0.0] for w in won], [[100.0 + x, 100.0] for x in d])).by_difference
    for own in found:
        mine = (d >= own.start) & (d <= own.end)
        assert own.count == mine.sum() and own.value == pytest.approx(won[mine].mean())
    assert len(found) == 10


def test_within_prompts_ignores_the_prompt():
    # Long prompts get long answers and high rewards; inside a prompt the longer answer scores lower.
    rewards = [[10.0 * p + 1, 10.0 * p] for p in range(30)]
    lengths = [[100.0 * p + 1, 100.0 * p + 2] for p in range(30)]
    found = _length(made(rewards, lengths))
    assert found.within_pearson.value == pytest.approx(-1)
    assert found.within_spearman.value == pytest.approx(-1)


def test_ranks_within():
    values, group = np.array([3.0, 1, 2, 5, 5, 9]), np.array([0, 0, 0, 1, 1, 2])
    assert ranks_within(values, group).tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5]
    assert centred(values, group).tolist() == [1, -1, 0, 0, 0, 0]


def test_logistic_of_bins_is_that_of_edges():
    rng = RNG(3)
    z = rng.choice([-0.9, -0.2, 0.1, 0.8], 500)
    won = (rng.random(500) < 1 / (1 + np.exp(-0.3 - z))).astype(float)
    places = np.unique(z)
    binned = fit_logistic(
        places, np.array([won[z == p].sum() for p in places]), np.array([(z == p).sum() for p in places])
    )
    whole = fit_logistic(z, won, np.ones(500))
    np.testing.assert_allclose(np.array(binned), np.array(whole), atol=1e-9)
    a, b = whole  # the score equations
    miss = won - 1 / (1 + np.exp(-a - b * z))
    assert abs(miss.sum()) < 0.02 and abs((miss * z).sum()) < 0.02


def test_ties_unknown_gaps_and_judges():
    result = made([[1.0, 1.0], [np.nan, 0.0], [1.0, 0.0]], [[5.0, 3.0], [5.0, 3.0], [2.0, 3.0]])
    found = _length(result)
    assert (found.by_side["longer"].count, found.by_side["longer"].value) == (2, 0.0)
    assert found.by_side["shorter"].value == 1
    result = replace(result, items=[replace(item, rewards=None) for item in result.items])
    assert _length(result).within_pearson is None


def test_pearson_without_spread():
    assert np.isnan(pearson([1.0, 1, 1], [1.0, 2, 3]))
