"""Estimators of advantages against sums written out, groups and masks, whitening, and the critic's figures."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rmfast.trainer.ppo.advantages import explained_variance, flat_group_share, gae, grpo, reinforce, rloo, whitened
from rmfast.trainer.ppo.packed import answer_of
from rmfast.trainer.ppo.rewards import with_bootstrap
from tests.trainer.ppo import answers as by_hand
from tests.trainer.ppo.answers import Answers, kl_rewards, packed, population_std, random_answers, rows

NAN = float("nan")
REWARDS = st.lists(st.floats(-10, 10), min_size=1, max_size=12)


def rewards_of(answers: Answers) -> list[list[float]]:
    return kl_rewards(answers, answers.raw, 0.1)


def everything(answers: Answers) -> Tensor:
    return torch.ones(len(answers.raw), dtype=torch.bool)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_gae_is_the_sum_of_its_deltas_and_returns_are_advantage_and_value(gamma: float, lam: float) -> None:
    """Trap 2: an answer of n tokens has n values, and the value after its end is 0."""
    answers = random_answers()
    rewards, values = rewards_of(answers), packed(answers.values)
    advantages, returns = gae(packed(rewards), values, answers.lengths, everything(answers), gamma=gamma, lam=lam)
    want = packed([by_hand.gae(r, v, gamma, lam) for r, v in zip(rewards, answers.values, strict=True)])
    torch.testing.assert_close(advantages, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, want + values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
def test_the_bootstrap_is_the_value_after_a_cut_answers_end(gamma: float, lam: float) -> None:
    """Trap 3: one more value in the last delta of cut answers, in their advantages and in their returns."""
    answers = random_answers()
    rewards, values, cut = rewards_of(answers), packed(answers.values), torch.tensor(answers.cut)
    assert 0 < int(cut.sum()) < len(cut)
    joined = with_bootstrap(packed(rewards), answers.lengths, cut, rows(answers.after), gamma=gamma)
    advantages, returns = gae(joined, values, answers.lengths, everything(answers), gamma=gamma, lam=lam)
    after = [value if is_cut else 0.0 for value, is_cut in zip(answers.after, answers.cut, strict=True)]
    each = zip(rewards, answers.values, after, strict=True)
    want = packed([by_hand.gae(r, v, gamma, lam, behind) for r, v, behind in each])
    torch.testing.assert_close(advantages, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, want + values, rtol=1e-12, atol=1e-12)


@given(st.lists(REWARDS, min_size=1, max_size=5), st.floats(-5, 5))
def test_undiscounted_gae_is_the_reward_to_go_less_the_value(rewards: list[list[float]], value: float) -> None:
    lengths = torch.tensor([len(r) for r in rewards])
    values = torch.full((int(lengths.sum()),), value, dtype=torch.float64)
    kept = torch.ones(len(rewards), dtype=torch.bool)
    advantages, returns = gae(packed(rewards), values, lengths, kept, gamma=1.0, lam=1.0)
    to_go = packed([[sum(r[t:]) for t in range(len(r))] for r in rewards])
    torch.testing.assert_close(advantages, to_go - values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(returns, to_go, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_is_the_discounted_reward_to_go(gamma: float) -> None:
    answers = random_answers()
    rewards = rewards_of(answers)
    got = reinforce(packed(rewards), answers.lengths, everything(answers), gamma=gamma)
    want = [[sum(gamma**k * x for k, x in enumerate(r[t:])) for t in range(len(r))] for r in rewards]
    torch.testing.assert_close(got, packed(want), rtol=1e-12, atol=1e-12)


def test_rloo_leaves_one_out_and_grpo_divides_by_the_groups_deviation() -> None:
    """Each token of an answer has the answer's advantage; the KL of its tokens is part of an answer's reward."""
    answers = random_answers()
    rewards = rewards_of(answers)
    whole = [sum(r) for r in rewards]
    left_out, relative = [], []
    for i, (reward, group) in enumerate(zip(whole, answers.group, strict=True)):
        mates = [r for r, g in zip(whole, answers.group, strict=True) if g == group]
        others = [r for j, (r, g) in enumerate(zip(whole, answers.group, strict=True)) if g == group and j != i]
        left_out.append([reward - statistics.fmean(others)] * len(rewards[i]))
        relative.append([(reward - statistics.fmean(mates)) / statistics.stdev(mates)] * len(rewards[i]))
    inputs = (packed(rewards), answers.lengths, everything(answers), torch.tensor(answers.group))
    torch.testing.assert_close(rloo(*inputs), packed(left_out), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grpo(*inputs), packed(relative), rtol=1e-12, atol=1e-12)


def test_baselines_know_their_groups_in_any_order() -> None:
    """Trap 30: a baseline is of one prompt's answers, wherever they are in the batch and whatever numbers prompts."""
    rewards, lengths, kept = rows([1.0, 10.0, 3.0, 20.0, 5.0]), torch.ones(5, dtype=torch.int64), torch.ones(5) > 0
    groups = torch.tensor([7, 2, 7, 2, 7])
    torch.testing.assert_close(rloo(rewards, lengths, kept, groups), rows([-3, -10, 0, 10, 3]))
    torch.testing.assert_close(grpo(rewards, lengths, kept, groups), rows([-1, -(0.5**0.5), 0, 0.5**0.5, 1]))


@given(REWARDS)
def test_rloo_advantages_of_a_group_sum_to_0(rewards: list[float]) -> None:
    ones = torch.ones(len(rewards), dtype=torch.int64)
    assert abs(float(rloo(rows(rewards), ones, ones > 0, ones).sum())) < 1e-10


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12), st.floats(0.01, 100), st.floats(-100, 100))
def test_grpo_does_not_know_the_scale_of_rewards(rewards: list[int], scale: float, shift: float) -> None:
    ones = torch.ones(len(rewards), dtype=torch.int64)
    plain = rows([float(r) for r in rewards])
    moved = scale * plain + (shift if len(set(rewards)) > 1 else 0.0)
    torch.testing.assert_close(
        grpo(moved, ones, ones > 0, ones), grpo(plain, ones, ones > 0, ones), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_a_group_without_spread_and_an_answer_alone_have_advantages_of_exactly_0(estimator: object) -> None:
    rewards, lengths = rows([0.1, 0.1, 0.1, 0.7, 5.0, 6.0]), torch.ones(6, dtype=torch.int64)
    kept, groups = torch.tensor([True, True, True, True, True, False]), torch.tensor([0, 0, 0, 1, 2, 2])
    assert estimator(rewards, lengths, kept, groups).tolist() == [0.0] * 6  # type: ignore[operator]


def test_grpo_does_not_blow_up_the_rounding_of_equal_answers() -> None:
    rewards = torch.tensor([0.3, 0.3 + 6e-8, 0.3 - 6e-8, 0.3])
    ones, group = torch.ones(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    kept = ones.bool()
    assert not grpo(rewards, ones, kept, group).any() and flat_group_share(rewards, kept, group) == 1
    rewards[1] += 1e-4
    assert grpo(rewards, ones, kept, group)[1] > 1 and flat_group_share(rewards, kept, group) == 0


def test_masked_answers_take_no_part_whatever_they_have() -> None:
    """They get 0; the others get what they would without them."""
    answers = random_answers()
    kept = ~torch.tensor(answers.cut)
    inside, lengths, groups = kept[answer_of(answers.lengths)], answers.lengths, torch.tensor(answers.group)
    damaged = torch.where(inside, packed(rewards_of(answers)), NAN)
    values = torch.where(inside, packed(answers.values), NAN)
    alone, some = damaged[inside], (lengths[kept], torch.ones(int(kept.sum()), dtype=torch.bool))
    pairs = [
        (gae(damaged, values, lengths, kept, gamma=1, lam=0.9), gae(alone, values[inside], *some, gamma=1, lam=0.9)),
        ([reinforce(damaged, lengths, kept, gamma=0.9)], [reinforce(alone, *some, gamma=0.9)]),
        ([rloo(damaged, lengths, kept, groups)], [rloo(alone, *some, groups[kept])]),
        ([grpo(damaged, lengths, kept, groups)], [grpo(alone, *some, groups[kept])]),
        ([whitened(damaged, inside)], [whitened(alone, torch.ones(len(alone), dtype=torch.bool))]),
    ]
    for whole, without in pairs:
        for a, b in zip(whole, without, strict=True):
            torch.testing.assert_close(a[inside], b, rtol=1e-12, atol=1e-12)
            assert not a[~inside].any()


def test_whitening_is_by_the_population_over_the_tokens_of_the_mask() -> None:
    """Trap 18: the variance is biased, and masked tokens are no part of it."""
    values, mask = [3.0, 100.0, 5.0, 10.0], torch.tensor([True, False, True, True])
    std = population_std([3.0, 5.0, 10.0])
    torch.testing.assert_close(whitened(rows(values), mask), rows([-3 / std, 0.0, -1 / std, 4 / std]))


@pytest.mark.parametrize("values", [[], [2.0], [0.1, 0.1, 0.1]])
def test_whitening_without_spread_only_centres(values: list[float]) -> None:
    every = torch.ones(len(values), dtype=torch.bool)
    assert whitened(rows(values), every).tolist() == [0.0] * len(values)
    assert whitened(rows(values), ~every).tolist() == [0.0] * len(values)


def test_explained_variance() -> None:
    returns, mask = rows([1.0, 2.0, 6.0, NAN]), torch.tensor([True, True, True, False])
    values = rows([2.0, 2.0, 5.0, 1.0])
    want = 1 - statistics.pvariance([-1.0, 0.0, 1.0]) / statistics.pvariance([1.0, 2.0, 6.0])
    assert explained_variance(values, returns, mask) == pytest.approx(want, rel=1e-12)
    assert explained_variance(returns + 3.0, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(4), returns, mask) == 0.0
    assert explained_variance(values, torch.full((4,), 0.1), mask) == 0.0
    assert explained_variance(values, returns, torch.zeros(4) > 0) == 0.0


def test_the_share_of_flat_groups_counts_prompts_whose_kept_answers_have_one_score() -> None:
    raw = rows([1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 9.0, NAN])
    groups = torch.tensor([5, 5, 1, 1, 2, 2, 2, 3])
    kept = torch.tensor([True, True, True, True, True, True, False, False])
    assert flat_group_share(raw, kept, groups) == 3 / 4
    assert flat_group_share(raw[:4], kept[:4], groups[:4]) == 1 / 2
    assert flat_group_share(raw[:0], kept[:0], groups[:0]) == 0.0
