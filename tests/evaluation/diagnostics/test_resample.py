import numpy as np
import pytest

from rmfast.evaluation.diagnostics import resample
from rmfast.evaluation.diagnostics.resample import by_prompt, figure, resampled, shares, tallies
from tests.evaluation.diagnostics.made import RNG


def test_spread_is_the_binomials():
    won = RNG(0).random(2500) < 0.7
    (own,) = shares(won, np.zeros(2500, dtype=int), np.arange(2500), 2500, 1)
    share = won.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 2500)
    assert own.value == pytest.approx(share)
    assert own.high - own.low == pytest.approx(2 * half, rel=0.1)


def test_rows_of_one_prompt_are_drawn_together():
    won = np.repeat(RNG(0).random(250) < 0.7, 10)
    prompt = np.repeat(np.arange(250), 10)
    (own,) = shares(won, np.zeros(2500, dtype=int), prompt, 250, 1)
    half = 1.96 * np.sqrt(won.mean() * (1 - won.mean()) / 250)
    assert own.high - own.low == pytest.approx(2 * half, rel=0.1)


def test_all_alike_is_wilson():
    (own,) = shares(np.ones(40), np.zeros(40, dtype=int), np.arange(40), 40, 1)
    assert own.value == own.high == 1 and own.low == pytest.approx(0.912, abs=0.001)


def test_draws_are_whole_prompts_and_the_same_in_blocks(monkeypatch):
    sums = np.stack([np.ones(50), np.arange(50.0)], axis=1)
    drawn = resampled(sums)
    assert drawn.shape == (1000, 2) and (drawn[:, 0] == 50).all()
    assert np.ptp(drawn[:, 1]) > 0
    np.testing.assert_array_equal(drawn, resampled(sums))
    monkeypatch.setattr(resample, "BLOCK", 50 * 300)
    assert (resampled(sums)[:, 0] == 50).all() and len(np.unique(resampled(sums)[:, 1])) > 200


def test_sums():
    prompt, kind = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    assert tallies(prompt, kind, 3, 2).tolist() == [[1, 1], [0, 1], [0, 1]]
    assert tallies(prompt, kind, 3, 2, [1, 2, 3, 4]).tolist() == [[1, 2], [0, 3], [0, 4]]
    assert by_prompt([1.0, 2, 3, 4], prompt, 3).tolist() == [[3], [3], [4]]


def test_undefined_draws_do_not_count():
    own = figure(1.0, [np.nan, 1.0, 2.0, np.inf])
    assert 1 <= own.low < own.high <= 2
    assert np.isnan(figure(np.nan, [1.0, 2.0]).low)
