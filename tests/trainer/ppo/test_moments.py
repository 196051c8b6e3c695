"""Running moments of scores: against the whole history, in any split, and to the bit through a checkpoint."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmfast.trainer.ppo.moments import Moments
from tests.trainer.ppo.answers import rows

SCORES = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@given(SCORES, st.lists(st.integers(0, 30), max_size=5))
def test_batches_in_any_split_give_the_moments_of_the_whole(scores: list[float], ends: list[int]) -> None:
    moments, start = Moments(), 0
    for end in [*sorted(min(end, len(scores)) for end in ends), len(scores)]:
        moments, start = moments.updated(rows(scores[start:end])), end
    assert moments.count == len(scores)
    assert moments.mean == pytest.approx(statistics.fmean(scores), abs=1e-12)
    assert moments.squares == pytest.approx(sum((x - statistics.fmean(scores)) ** 2 for x in scores), abs=1e-9)


@given(SCORES, SCORES)
def test_parts_of_ranks_merge_to_the_same_in_both_orders(a: list[float], b: list[float]) -> None:
    one, other = Moments.of(rows(a)), Moments.of(rows(b))
    there, back = one.merged(other), other.merged(one)
    assert (there.count, there.mean) == (back.count, pytest.approx(back.mean, abs=1e-12))
    assert there.squares == pytest.approx(back.squares, abs=1e-9)


def test_scores_are_normalised_by_bessels_standard_deviation() -> None:
    scores = [1.0, 2.0, 4.0, 9.0]
    moments = Moments().updated(rows(scores))
    assert moments.std == pytest.approx(statistics.stdev(scores), rel=1e-14)
    want = [(x - 4.0) / statistics.stdev(scores) for x in scores]
    torch.testing.assert_close(moments.normalised(rows(scores)), rows(want), rtol=1e-14, atol=0)


def test_the_std_is_1_until_there_are_two_different_scores() -> None:
    assert Moments().std == 1.0
    once = Moments().updated(rows([0.1]))
    assert (once.std, once.normalised(rows([0.1, 1.1])).tolist()) == (1.0, [0.0, 1.0])
    same = once.updated(rows([0.1] * 6)).updated(rows([0.1]))
    assert (same.count, same.squares, same.std) == (8, 0.0, 1.0)  # 6 times 0.1 / 6 is not 0.1 in fp64
    assert same.updated(rows([0.2])).std == pytest.approx(statistics.stdev([0.1] * 8 + [0.2]))


def test_a_large_mean_does_not_swallow_the_spread() -> None:
    scores = rows([1e8 + k for k in (0.0, 1.0, 2.0, 3.0)])
    moments = Moments().updated(scores[:1]).updated(scores[1:])
    assert moments.std == pytest.approx(statistics.stdev([0.0, 1.0, 2.0, 3.0]), rel=1e-9)


def test_fp32_scores_are_taken_in_in_fp64() -> None:
    scores = torch.tensor([16777216.0, 1.0, 1.0], dtype=torch.float32)  # whose sum in fp32 is 16777216
    assert Moments().updated(scores).mean == pytest.approx(16777218 / 3, rel=1e-15)
    assert Moments().normalised(scores).dtype == torch.float64


def test_nothing_changes_by_no_scores() -> None:
    moments = Moments().updated(rows([1.0, 5.0]))
    assert moments.updated(rows([])) == moments
    assert Moments().updated(rows([])) == Moments()


def test_the_state_of_a_checkpoint_gives_the_same_bits() -> None:
    moments = Moments().updated(rows([0.1, 0.7, -3.3])).updated(rows([1 / 3]))
    state = moments.state
    assert (state.dtype, state.shape) == (torch.float64, (3,))
    assert Moments.from_state(state) == moments
    assert Moments.from_state(Moments().state) == Moments()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="moments: a score is not finite"):
        Moments().updated(rows([1.0, bad]))
