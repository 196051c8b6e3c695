from dataclasses import replace

import numpy as np
import pytest

from rmfast.evaluation.diagnostics.calibration import calibration, temperature
from rmfast.evaluation.diagnostics.table import table_of
from rmfast.evaluation.diagnostics.writers import by_writer
from tests.evaluation.diagnostics.made import RNG, made


def _writers(result):
    found = by_writer(table_of(result))
    return found, {row.name: row for row in found.writers}


def _pairs(accuracy: float, taste: float, rows: int = 900):
    """Three writers whom the labels like in the order strong, plain, weak; the model adds `taste` to plain's."""
    rng = RNG(0)
    names, level = np.array(["strong", "plain", "weak"]), {"strong": 2.0, "plain": 1.0, "weak": 0.0}
    rewards, writers = [], []
    for _ in range(rows):
        pair = sorted(rng.choice(names, 2, replace=False), key=lambda n: -level[n])
        gap = 1.0 if rng.random() < accuracy else -1.0
        rewards.append([gap + taste * (pair[0] == "plain"), taste * (pair[1] == "plain")])
        writers.append(pair)
    return made(rewards, writers=writers)


def test_a_favourite_is_found():
    found, by = _writers(_pairs(1.0, 5.0))
    assert found.writers[0].name == "plain"
    assert by["plain"].win_share.value == 1
    assert by["plain"].labelled_share == pytest.approx(0.5, abs=0.1)
    assert by["plain"].favour.low > 0.3 and by["plain"].beyond_errors.low > 0.2
    assert by["strong"].favour.high < 0
    assert sum(row.favour.value * row.edges for row in found.writers) == pytest.approx(0)


def test_noise_is_no_taste():
    _, by = _writers(_pairs(0.5, 0.0, 2000))
    assert by["weak"].favour.low > 0.3  # beats whom it should not, as anybody does before a coin
    for row in by.values():
        assert row.beyond_errors.low - 0.02 < 0 < row.beyond_errors.high + 0.02


def test_rewards_of_writers():
    # Prompt 0 holds the same pair twice; its responses and edges count once.
    rewards = [[3.0, 1.0], [3.0, 1.0], [2.0, 5.0, 2.0]]
    writers = [["a", "b"], ["a", "b"], ["a", "b", "c"]]
    result = made(rewards, [[1, 2], [1, 2], [1, 2, 3]], writers=writers, prompts=[0, 0, 1])
    found, by = _writers(result)
    assert by["a"].rewards.responses == 2 and by["a"].rewards.mean == 2.5 and by["a"].rewards.std == 0.5
    assert by["a"].rewards.min == 2 and by["a"].rewards.median == 2.5 and by["a"].rewards.max == 3
    assert by["b"].rewards.mean == 3 and by["b"].rewards.above_prompt == pytest.approx((-1 + 2) / 2)
    assert by["a"].rewards.mean_rank == pytest.approx((1 + 0.25) / 2) and by["b"].rewards.mean_rank == 0.5
    assert by["a"].edges == 3 and by["a"].win_share.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert by["c"].labelled_share == 0 and by["c"].favour.value == 0.5
    assert found.reward_mean == pytest.approx((3 + 1 + 2 + 5 + 2) / 5)


def test_without_writers_or_rewards():
    assert by_writer(table_of(made([[1.0, 0.0]]))) is None
    result = made([[1.0, 0.0], [0.0, 1.0]], writers=[["a", "b"], ["a", "a"]])
    result = replace(result, items=[replace(item, rewards=None) for item in result.items])
    found, by = _writers(result)
    assert found.reward_mean is None and by["a"].edges == 1 and by["a"].win_share.value == 1
    assert calibration(table_of(result)) is None


def test_temperature_undoes_a_scale():
    rng = RNG(1)
    logit = rng.normal(size=4000)
    gap = np.where(rng.random(4000) < 1 / (1 + np.exp(-logit)), logit, -logit)  # the better side drawn by the logit
    assert temperature(gap) == pytest.approx(1, abs=0.1)
    assert temperature(gap * 3) == pytest.approx(3 * temperature(gap), rel=1e-9)
    assert temperature(np.ones(3)) == 0 and temperature(-np.ones(3)) == np.inf and np.isnan(temperature(np.zeros(2)))
    found = {scale: calibration(table_of(made([[g * scale, 0.0] for g in gap])))["pairwise"] for scale in (1, 4)}
    assert found[1].error < 0.04 < 0.1 < found[4].error
    assert sum(bin.count for bin in found[1].curve) == 8000
