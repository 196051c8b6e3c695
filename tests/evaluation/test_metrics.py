"""Metrics against values worked out by hand, by brute force, and by torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmfast.evaluation.metrics import accuracy_interval, calibration_error, pairwise_metrics, reliability, wilson


def pairs(better_scores, worse_scores):
    """Scores [2 E] and edges of E separate pairs."""
    scores = np.concatenate([better_scores, worse_scores]).astype(float)
    count = len(better_scores)
    return scores, np.arange(count), np.arange(count, 2 * count)


def test_ties_lose_and_are_counted():
    m = pairwise_metrics(*pairs([1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 4.0]))
    assert (m["accuracy"], m["ties"], m["edges"], m["responses"], m["nonfinite"]) == (0.5, 1, 4, 8, 0)
    assert m["margin"] == pytest.approx(0.25)
    assert m["mean_better"] == 2.0 and m["mean_worse"] == 1.75
    assert (m["min_reward"], m["max_reward"], m["mean_reward"]) == (0.0, 5.0, 1.875)
    assert m["std_reward"] == pytest.approx(np.std([1, 2, 0, 5, 0, 2, 1, 4]))


def test_accuracy_is_unweighted():
    assert pairwise_metrics(*pairs([1, 0], [0, 1]), weight=[9.0, 1.0])["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("wins", "total", "low", "high"),
    [(50, 100, 0.40383, 0.59617), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (1, 1, 0.20655, 1.0)],
)
def test_wilson_against_published_values(wins, total, low, high):
    assert wilson(wins, total) == pytest.approx((low, high), abs=1e-5)


def test_loss_is_the_weighted_mean_of_ranking_loss():
    rng = np.random.default_rng(1)
    b, w, margin = rng.normal(size=(3, 7))
    target, weight = rng.random((2, 7))
    m = pairwise_metrics(*pairs(b, w), margin=margin, target=target, weight=weight, center=0.01)
    d = torch.tensor(b - w - margin)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(d, torch.tensor(target), reduction="none")
    want = (cross_entropy + 0.01 * torch.tensor(b + w) ** 2) @ torch.tensor(weight) / weight.sum()
    assert m["loss"] == pytest.approx(want.item(), rel=1e-12)


def test_loss_and_calibration_survive_huge_scores():
    m = pairwise_metrics(*pairs([1e4, -1e200], [-1e4, 1e200]))
    assert m["loss"] == pytest.approx(1e200)
    assert m["calibration_error"] == pytest.approx(0.5)


def test_a_constant_model_is_calibrated_and_a_sure_one_is_not():
    rng = np.random.default_rng(0)
    assert calibration_error(*pairs(np.zeros(500), np.zeros(500))) == pytest.approx(0.0, abs=1e-12)
    wins = rng.random(2000) < 0.6
    sure = np.where(wins, 20.0, -20.0)
    assert calibration_error(*pairs(sure, np.zeros(2000))) == pytest.approx(1 - wins.mean(), abs=0.005)


def test_calibration_of_a_model_that_knows_its_odds():
    rng = np.random.default_rng(0)
    p = rng.random(40_000)
    gap = np.log(p / (1 - p))
    gap = np.where(rng.random(p.size) < p, gap, -gap)  # the listed better reply wins with the model's own probability
    assert calibration_error(*pairs(gap, np.zeros(p.size))) < 0.015
    assert calibration_error(*pairs(3 * gap, np.zeros(p.size))) > 0.08


def test_reliability_bins_are_of_equal_mass_and_mirror_each_other():
    rng = np.random.default_rng(2)
    curve = reliability(*pairs(rng.normal(0.3, 1, 500), rng.normal(size=500)), bins=10)
    assert curve.count.tolist() == [100] * 10
    assert np.all(np.diff(curve.predicted) > 0)
    np.testing.assert_allclose(curve.predicted, 1 - curve.predicted[::-1], atol=1e-12)
    np.testing.assert_allclose(curve.observed, 1 - curve.observed[::-1], atol=1e-12)
    assert np.all((curve.low < curve.observed) & (curve.observed < curve.high))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30), st.randoms())
def test_order_of_rows_does_not_matter(rows, random):
    shuffled = rows.copy()
    random.shuffle(shuffled)
    results = []
    for order in (rows, shuffled):
        scores, better, worse = pairs(*(np.array(column) for column in zip(*order, strict=True)))
        results.append(pairwise_metrics(scores, better, worse, lengths=np.abs(scores)))
    assert {k: v for k, v in results[0].items() if k != "baseline"} == pytest.approx(
        {k: v for k, v in results[1].items() if k != "baseline"}, abs=1e-9, nan_ok=True
    )


def test_length_baseline_is_the_better_rule_and_ties_lose_for_both():
    scores, better, worse = pairs(np.ones(4), np.zeros(4))
    m = pairwise_metrics(scores, better, worse, lengths=[1, 1, 1, 9, 5, 5, 1, 2])
    assert (m["longer_wins"], m["shorter_wins"]) == (0.25, 0.5)
    assert (m["baseline"], m["baseline_accuracy"]) == ("shorter wins", 0.5)
    assert (m["baseline_low"], m["baseline_high"]) == pytest.approx(wilson(2, 4))


def test_length_correlation():
    scores, better, worse = pairs([3.0, 1.0], [2.0, 0.0])
    assert pairwise_metrics(scores, better, worse, lengths=10 * scores)["length_correlation"] == pytest.approx(1.0)
    assert math.isnan(pairwise_metrics(0.1 * np.ones(4), better, worse, lengths=scores)["length_correlation"])
    assert "baseline" not in pairwise_metrics(scores, better, worse)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["better", "worse"])
def test_a_broken_score_loses_and_is_never_averaged(broken, side):
    scores, better, worse = pairs([2.0, 3.0], [1.0, 1.0])
    scores[0 if side == "better" else 2] = broken
    m = pairwise_metrics(scores, better, worse, lengths=[1, 2, 3, 4], center=0.1)
    assert (m["nonfinite"], m["accuracy"], m["ties"]) == (1, 0.5, 0)
    for name in ("loss", "margin", "mean_reward", "std_reward", "min_reward", "max_reward", "calibration_error"):
        assert math.isnan(m[name]), name
    assert math.isnan(m["length_correlation"])


def test_no_edges_and_no_responses():
    empty = np.array([], dtype=int)
    m = pairwise_metrics([1.0, 2.0], empty, empty, lengths=[3, 4], groups=empty)
    assert m["edges"] == 0 and m["mean_reward"] == 1.5
    assert all(math.isnan(m[name]) for name in ("accuracy", "accuracy_low", "loss", "margin", "calibration_error"))
    assert pairwise_metrics([], empty, empty, lengths=[])["responses"] == 0
    assert reliability([], empty, empty).count.size == 0


def test_groups_of_one_edge_keep_wilson():
    won = np.array([True, False, True])
    assert accuracy_interval(won, np.array([5, 3, 9])) == wilson(2, 3)


def test_cluster_bootstrap_matches_drawing_groups_one_by_one():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), 6)
    won = rng.random(360) < np.repeat(rng.random(60), 6)
    low, high = accuracy_interval(won, groups)
    drawn = won.reshape(60, 6)[rng.integers(60, size=(20_000, 60))].mean(axis=(1, 2))
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.006)
    plain_low, plain_high = wilson(won.sum(), won.size)
    assert high - low > 1.2 * (plain_high - plain_low)
    assert accuracy_interval(won, groups) == (low, high)
    assert accuracy_interval(won, groups + 7) == (low, high)


@pytest.mark.parametrize("won", [np.ones(6, bool), np.array([1, 1, 1, 0, 0, 0], bool)])
def test_a_single_group_says_almost_nothing(won):
    low, high = accuracy_interval(won, np.zeros(6, int))
    assert high - low > 0.7


def test_intervals_use_the_groups():
    scores, better, worse = pairs(np.ones(40), np.zeros(40))
    scores[:20] = -1
    groups = np.repeat([0, 1, 2, 3], 10)
    wide = pairwise_metrics(scores, better, worse, groups=groups, lengths=scores + 5)
    narrow = pairwise_metrics(scores, better, worse, lengths=scores + 5)
    for name in ("accuracy", "baseline"):
        assert wide[f"{name}_high"] - wide[f"{name}_low"] > narrow[f"{name}_high"] - narrow[f"{name}_low"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"better": [0, 1]}, "better"),
        ({"worse": [4]}, "outside"),
        ({"worse": [-1]}, "outside"),
        ({"lengths": [1]}, "lengths"),
        ({"groups": [1, 2]}, "groups"),
        ({"margin": [1.0, 2.0]}, "margin"),
    ],
)
def test_wrong_shapes_are_refused(change, says):
    arguments = {"scores": [1.0, 0.0], "better": [0], "worse": [1]} | change
    with pytest.raises(ValueError, match=says):
        pairwise_metrics(**arguments)
