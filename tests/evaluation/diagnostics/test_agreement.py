from dataclasses import replace

import numpy as np
import pytest

from rmfast.evaluation.diagnostics import diagnose
from rmfast.evaluation.diagnostics.agreement import WrongCounts, agreement, cohen_kappa, mcnemar_p
from rmfast.evaluation.diagnostics.headline import resample_suite
from rmfast.evaluation.diagnostics.resample import Figure
from tests.evaluation.diagnostics.made import RNG, changed, made


def _agreement(*results):
    return agreement(results, [resample_suite(result) for result in results])


def test_identical_models_agree():
    gaps = RNG(0).normal(size=200)
    result = made([[g, 0.0] for g in gaps])
    found = _agreement(result, result)
    assert found.edges == [[1, 1], [1, 1]]
    np.testing.assert_allclose([found.kappa, found.spearman], np.ones((2, 2, 2)))
    (pair,) = found.pairs
    assert pair.parts["pairwise"] == pair.headline["pairwise"] == Figure(0, 0, 0)
    assert pair.rows["pairwise"].only_a == pair.rows["pairwise"].only_b == 0
    assert pair.rows["pairwise"].p == 1


def test_the_better_one_is_told_and_a_coin_is_not():
    rng = RNG(1)
    hard = rng.random(1500)  # rows are hard for both: the paired difference is far sharper than two intervals
    a, b = hard < 0.75, hard < 0.70
    found = _agreement(*(made([[1.0 if w else -1.0, 0.0] for w in won]) for won in (a, b)))
    own = found.pairs[0].parts["pairwise"]
    n = 1500
    assert own.value == pytest.approx(a.mean() - b.mean()) and own.low > 0
    share = (a & ~b).mean()
    assert own.high - own.low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / n), rel=0.12)
    assert found.pairs[0].rows["pairwise"].p < 1e-6
    coins = _agreement(*(made([[1.0 if w else -1.0, 0.0] for w in rng.random(n) < 0.7]) for _ in range(2)))
    own = coins.pairs[0].parts["pairwise"]
    assert own.low < 0 < own.high and abs(coins.kappa[0][1]) < 0.06


def test_kappa_and_mcnemar():
    a, b = np.repeat([1, 1, 0, 0], [20, 5, 10, 15]), np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(a, b) == pytest.approx(0.4)  # (0.7 - 0.5) / (1 - 0.5)
    assert np.isnan(cohen_kappa([1, 1], [1, 1]))
    assert mcnemar_p(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_p(3, 3) == 1
    assert mcnemar_p(4000, 4300) < 0.01 and mcnemar_p(4000, 4030) > 0.5


def test_rows_that_all_get_wrong():
    a = made([[1.0, 0.0], [-1.0, 0.0], [-9.0, 0.0], [1.0, 0.0]])
    b = made([[1.0, 0.0], [-2.0, 0.0], [-3.0, 0.0], [-1.0, 0.0]])
    wrong = _agreement(a, b).all_wrong
    assert wrong.parts == {"pairwise": WrongCounts(rows=4, all_wrong=2, expected=4 * 0.5 * 0.75, all_right=1)}
    assert [row.label for row in wrong.rows] == ["folder/rows.jsonl:3", "folder/rows.jsonl:2"]
    assert wrong.rows[0].gaps == [-9, -3]


def test_votes_and_the_whole():
    votes = [np.array([[1.0], [1.0], [-1.0]]), np.array([[-1.0], [1.0], [-1.0]])]
    found = diagnose([made([[1.0, 0.0], [-1.0, 0.0]], votes=votes)])
    assert found.agreement is None and found.selection is None and found.notes == []
    assert found.models[0].votes["pairwise"] == pytest.approx([0.5, 1 / 6, 0.5])  # 1, 2 and 3 of three
    assert found.rows == found.edges == found.prompts == 2


def test_lengths_in_the_models_own_units():
    one, other, judge = (made([[1.0, 0.0]] * 4, [[3, 2]] * 4, name=name) for name in ("one", "other", "judge"))
    assert diagnose([one, other]).notes == []
    other = changed(other, 0, lengths=[4.0, 2.0])
    assert diagnose([one, other]).notes == ["Lengths are counted by each model's tokenizer, and differ between models."]
    judge = replace(judge, length_unit="characters")
    found = diagnose([one, judge, other])
    assert [model.length_unit for model in found.models] == ["tokens", "characters", "tokens"]
    assert found.notes == [
        "Lengths differ between models: they are counted in tokens for one, other; in characters for judge."
    ]
