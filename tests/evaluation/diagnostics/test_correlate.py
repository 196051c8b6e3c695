from itertools import combinations

import numpy as np
import pytest

from rmfast.evaluation.diagnostics.correlate import correlation, kendall, pearson, permutation_p, ranks, spearman
from tests.evaluation.diagnostics.made import RNG


def test_ranks_share_ties():
    assert ranks([10.0, 20, 10, 30]).tolist() == [1.5, 3, 1.5, 4]


def test_against_definitions():
    rng = RNG(0)
    x, y = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])
    signs = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i, j in combinations(range(40), 2)]
    differ = [sum(v[i] != v[j] for i, j in combinations(range(40), 2)) for v in (x, y)]
    assert kendall(x, y) == pytest.approx(sum(signs) / np.sqrt(differ[0] * differ[1]))


def test_known_values():
    # Ten pairs of Kendall's (1948) worked example kind: three of ten pairs are discordant in each.
    assert kendall([1.0, 2, 3, 4], [1.0, 2, 4, 3]) == pytest.approx(4 / 6)
    assert spearman([1.0, 2, 3, 4], [1.0, 2, 4, 3]) == pytest.approx(0.8)
    many = np.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])
    np.testing.assert_allclose(kendall(many, many[:1]), [1, -1])


def test_three_values_can_never_tell():
    assert permutation_p([1.0, 2, 3], [1.0, 2, 3]) == pytest.approx(1 / 3)
    assert permutation_p(np.arange(6.0), np.arange(6.0)) == pytest.approx(2 / 720)
    assert permutation_p(np.arange(12.0), np.arange(12.0)) < 0.001
    assert 0.05 < permutation_p(np.arange(12.0), RNG(0).permutation(12)) <= 1


def test_correlation_interval_is_fishers():
    rng = RNG(1)
    x = rng.normal(size=2000)
    y = 0.6 * x + 0.8 * rng.normal(size=2000)
    found = correlation(x, y, np.arange(2000), 2000)
    r = np.corrcoef(x, y)[0, 1]
    low, high = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(1997))
    assert found.value == pytest.approx(r)
    assert found.low == pytest.approx(low, abs=0.008) and found.high == pytest.approx(high, abs=0.008)
