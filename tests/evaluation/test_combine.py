"""Combining members, against figures worked out by hand."""

import numpy as np
import pytest

from rmfast.data.edge_columns import Edges
from rmfast.evaluation.combine import (
    agreement,
    combine,
    combined_metrics,
    combined_scores,
    majority,
    mean_agreement,
    standardise,
    vote_scores,
)

REWARDS = np.array([[1.0, 2.0, 6.0], [3.0, 0.0, 6.0], [5.0, 1.0, 0.0], [-1.0, 5.0, 4.0]])  # [4 members, 3 responses]


def edges_of(better: list[int], worse: list[int], responses: int) -> Edges:
    count = len(better)
    one = np.ones(count)
    return Edges(
        better=np.array(better),
        worse=np.array(worse),
        group=np.arange(count),
        margin=0 * one,
        target=one,
        weight=one,
        length=np.arange(1, responses + 1),
    )


@pytest.mark.parametrize(
    "rule, k, expected",
    [
        ("mean", 1, [2.0, 2.0, 4.0]),
        ("median", 1, [2.0, 1.5, 5.0]),  # of four members: between the middle two
        ("worst", 1, [-1.0, 0.0, 0.0]),
        ("mean-k-std", 0, [2.0, 2.0, 4.0]),
        ("mean-k-std", 1, [2 - 5**0.5, 2 - 3.5**0.5, 4 - 6**0.5]),  # population std
        ("mean-k-std", 2, [2 - 2 * 5**0.5, 2 - 2 * 3.5**0.5, 4 - 2 * 6**0.5]),
    ],
)
def test_rules(rule: str, k: float, expected: list[float]) -> None:
    assert combine(REWARDS, rule, k) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_majority_counts_a_tie_as_an_abstention() -> None:
    rewards = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 9.0], [2.0, 1.0]])
    assert majority(rewards, [0], [1]).tolist() == [1.0]  # two for, one against, one abstains
    assert majority(rewards, [1], [0]).tolist() == [-1.0]
    assert majority(rewards[:3], [0], [1]).tolist() == [0.0]  # one for, one against: a tie
    assert majority(REWARDS, [0, 2, 0], [1, 0, 2]).tolist() == [0.0, 2.0, -2.0]
    with pytest.raises(ValueError, match="majority"):
        combine(rewards, "majority")


def test_a_vote_scores_a_response_by_the_members_that_prefer_it_to_the_others_of_its_prompt() -> None:
    rewards = np.array([[1.0, 2.0, 5.0, 7.0], [3.0, 1.0, 1.0, 0.0]])
    # The third one is preferred to the first by one of two, and to the second by one of two, where the other abstains.
    assert vote_scores(rewards, [4, 4, 4, 2]).tolist() == [0.0, -0.25, 0.25, 0.0]
    assert vote_scores(rewards * [[9.0], [0.1]] - 3, [4, 4, 4, 2]).tolist() == [0.0, -0.25, 0.25, 0.0]
    assert vote_scores(rewards, [1, 0, 1, 0]).tolist() == [0.0, 0.0, 0.0, 0.0]
    assert combined_scores(rewards, [0, 0, 0, 1], "majority").tolist() == [0.0, -0.25, 0.25, 0.0]
    assert combined_scores(rewards, [0, 0, 0, 1], "worst").tolist() == [1.0, 1.0, 1.0, 0.0]


def test_one_member_is_itself() -> None:
    for rule in ("mean", "median", "worst", "mean-k-std"):
        assert combine(REWARDS[:1], rule).tolist() == REWARDS[0].tolist()  # type: ignore[arg-type]


def test_a_broken_reward_stays_broken() -> None:
    rewards = REWARDS.copy()
    rewards[2, 1], rewards[0, 0] = np.nan, np.inf
    for rule in ("mean", "median", "worst", "mean-k-std"):
        assert np.isnan(combine(rewards, rule)).tolist() == [True, True, False]  # type: ignore[arg-type]
    assert np.isnan(majority(rewards, [0, 2], [2, 1])).all()
    metrics = combined_metrics(rewards, edges_of([2], [0], 3), "majority")
    assert (metrics["accuracy"], metrics["nonfinite"]) == (0.0, 2)


def test_standardised_members_have_one_scale() -> None:
    scaled = standardise(REWARDS)
    assert scaled.mean(1) == pytest.approx(np.zeros(4), abs=1e-12)
    assert scaled.std(1) == pytest.approx(np.ones(4), abs=1e-12)
    # What a member's own scale and offset say nothing of: the worst of them.
    moved = REWARDS * np.array([[1.0], [100.0], [0.01], [1.0]]) + np.array([[0.0], [-5.0], [7.0], [1.0]])
    assert standardise(moved) == pytest.approx(scaled, abs=1e-12)
    assert combine(moved, "worst") != pytest.approx(combine(REWARDS, "worst"))
    assert standardise([[3.0, 3.0]]).tolist() == [[0.0, 0.0]]
    part = standardise([[1.0, np.nan, 3.0]])
    assert part[0, [0, 2]] == pytest.approx([-1.0, 1.0]) and np.isnan(part[0, 1])


def test_figures_of_a_rule() -> None:
    edges = edges_of([2, 0, 0], [0, 1, 2], 3)
    mean = combined_metrics(REWARDS, edges, "mean")
    assert (mean["accuracy"], mean["ties"], mean["margin"]) == (1 / 3, 1, pytest.approx(0.0))
    assert mean["loss"] == pytest.approx((np.log1p(np.exp(-2)) + np.log(2) + np.log1p(np.exp(2))) / 3)
    vote = combined_metrics(REWARDS, edges, "majority")
    assert (vote["accuracy"], vote["ties"], vote["edges"], vote["responses"]) == (1 / 3, 1, 3, 3)
    assert vote["longer_wins"] == mean["longer_wins"] == 1 / 3 and vote["shorter_wins"] == mean["shorter_wins"]
    assert not {"loss", "margin", "mean_reward", "calibration_error"} & vote.keys()


def test_agreement_of_members() -> None:
    gaps = np.array([[1.0, 2.0, -1.0, 0.0], [3.0, -1.0, -2.0, 0.0], [np.nan, 1.0, np.nan, 2.0]])
    shares = agreement(gaps)
    assert shares == pytest.approx(np.array([[1, 0.75, 0.5], [0.75, 1, 0], [0.5, 0, 1]]))
    assert mean_agreement(gaps) == pytest.approx((0.75 + 0.5 + 0.0) / 3)
    apart = np.array([[1.0, np.nan], [np.nan, 1.0]])  # folds: no edge that both judged
    assert np.isnan(agreement(apart)[0, 1]) and np.isnan(mean_agreement(apart))
