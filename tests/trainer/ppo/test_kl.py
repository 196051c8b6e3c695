"""The coefficient of the KL penalty: fixed, and steered to a target."""

import pytest
import torch

from rmfast.trainer.ppo.kl import KLCoefficient


def test_a_fixed_coefficient_never_changes() -> None:
    fixed = KLCoefficient(value=0.05)
    assert fixed.updated(100.0, 512) == fixed


@pytest.mark.parametrize(
    ("kl", "error"), [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (7.2, 0.2), (0.0, -0.2), (-3.0, -0.2)]
)
def test_the_coefficient_follows_the_clipped_relative_error(kl: float, error: float) -> None:
    adaptive = KLCoefficient(value=0.05, target=6.0, horizon=10_000)
    assert adaptive.updated(kl, 256).value == pytest.approx(0.05 * (1 + error * 256 / 10_000), rel=1e-12)


def test_steps_multiply() -> None:
    coefficient = KLCoefficient(value=0.1, target=2.0, horizon=1000)
    for kl in (4.0, 1.9, 2.05):
        coefficient = coefficient.updated(kl, 100)
    assert coefficient.value == pytest.approx(0.1 * 1.02 * (1 - 0.05 * 0.1) * (1 + 0.025 * 0.1), rel=1e-12)


def test_two_halves_of_the_answers_are_not_two_steps_of_one_rank_each() -> None:
    """The controller counts the answers of all ranks: half of them moves it half as far."""
    coefficient = KLCoefficient(value=0.1, target=1.0, horizon=1000)
    whole, half = coefficient.updated(2.0, 200).value, coefficient.updated(2.0, 100).value
    assert whole - 0.1 == pytest.approx(2 * (half - 0.1))


def test_without_answers_nothing_changes() -> None:
    coefficient = KLCoefficient(value=0.1, target=1.0)
    assert coefficient.updated(float("nan"), 0) == coefficient


def test_the_state_of_a_checkpoint_gives_the_same_bits() -> None:
    coefficient = KLCoefficient(value=0.1, target=1.0, horizon=300).updated(1.07, 7)
    assert (coefficient.state.dtype, coefficient.state.shape) == (torch.float64, (1,))
    assert KLCoefficient(value=0.1, target=1.0, horizon=300).with_state(coefficient.state) == coefficient


def test_a_kl_that_is_not_finite_and_a_horizon_within_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="kl_coefficient: the KL of a step is nan"):
        KLCoefficient(value=0.1, target=1.0).updated(float("nan"), 8)
    with pytest.raises(ValueError, match="kl_coefficient: a horizon of 20 is too short for 100 answers"):
        KLCoefficient(value=0.1, target=1.0, horizon=20).updated(1.0, 100)
