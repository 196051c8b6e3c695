"""Where the expected updates of PPO's rewards and advantages lead to: the known optima, and what each of some mistakes
leads to instead, which is too far from them to be taken for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rmfast.trainer.ppo.advantages import gae, reinforce
from rmfast.trainer.ppo.packed import answer_of, sums
from rmfast.trainer.ppo.rewards import RewardOptions, score_answers, token_rewards
from tests.ppo.exact import Steps, loss_optimum, objective, optimum, possible_gain, total_variation, trained_for
from tests.ppo.expected import Batch, led_to
from tests.ppo.folders import answers_of
from tests.ppo.test_exact import BETA, random_rewards, random_steps

ANSWERS = answers_of("ab")
BATCH = Batch(ANSWERS)
EVERY = torch.ones(len(ANSWERS.ids), dtype=torch.bool)
RAW = random_rewards(ANSWERS, 0)
REFERENCES = {"uniform": random_steps(ANSWERS, 0, spread=0.0), "random": random_steps(ANSWERS, 1)}
RATE = 0.5 / BETA


def rewards_of(steps: Steps, reference: Steps, scores: Tensor, beta: float) -> Tensor:
    return token_rewards(scores, ANSWERS.lengths, EVERY, BATCH.log_prob(steps), BATCH.log_prob(reference), kl=beta)


def to_go(rewards: Tensor) -> Tensor:
    return reinforce(rewards, ANSWERS.lengths, EVERY, gamma=1.0)


def with_critic(rewards: Tensor, steps: Steps, lam: float) -> Tensor:
    """GAE with the exact values."""
    values = BATCH.before_tokens(steps, to_go(rewards))
    return gae(rewards, values, ANSWERS.lengths, EVERY, gamma=1.0, lam=lam)[0]


def left_out(rewards: Tensor, steps: Steps) -> Tensor:
    """Each answer's whole reward less the mean, as rloo of many answers has it."""
    whole = sums(rewards, ANSWERS.lengths)
    mean = (ANSWERS.log_prob(steps).exp() * whole).sum()
    return (whole - mean)[answer_of(ANSWERS.lengths)]


@pytest.fixture(params=REFERENCES)
def reference(request: pytest.FixtureRequest) -> Steps:
    return REFERENCES[request.param]


@pytest.fixture(params=["zero", "penalty"])
def scores(request: pytest.FixtureRequest) -> Tensor:
    options = RewardOptions(max_new_tokens=ANSWERS.longest, truncated=request.param, truncated_score=-1.0)
    groups = torch.zeros_like(ANSWERS.lengths)
    return score_answers(RAW[:, None], ANSWERS.lengths, ANSWERS.cut, groups, options).scores


def test_scores_are_what_answers_are_trained_for(scores: Tensor) -> None:
    assert any(torch.equal(scores, trained_for(ANSWERS, RAW, truncated_score=score)) for score in (0.0, -1.0))


def test_at_the_optimum_every_answer_has_the_same_whole_reward(reference: Steps, scores: Tensor) -> None:
    """beta log Z: nothing is left to learn, whatever the estimator."""
    log_ref = ANSWERS.log_prob(reference)
    steps = ANSWERS.steps(optimum(log_ref, scores, BETA))
    whole = sums(rewards_of(steps, reference, scores, BETA), ANSWERS.lengths)
    torch.testing.assert_close(whole, torch.full_like(whole, float(BETA * (log_ref + scores / BETA).logsumexp(0))))


RULES: dict[str, Callable[[Tensor, Steps], Tensor]] = {
    "gae 1": lambda rewards, steps: with_critic(rewards, steps, 1.0),
    "gae 0.95": lambda rewards, steps: with_critic(rewards, steps, 0.95),
    "rloo": left_out,
    "reinforce": lambda rewards, _: to_go(rewards),
}


@pytest.mark.parametrize("rule", RULES)
def test_kl_in_the_reward_leads_to_the_closed_form(reference: Steps, scores: Tensor, rule: str) -> None:
    """So does lambda below 1, as long as the critic is exact."""

    def advantages(steps: Steps) -> Tensor:
        return RULES[rule](rewards_of(steps, reference, scores, BETA), steps)

    found = led_to(BATCH, reference, advantages, rate=RATE)
    assert total_variation(found, optimum(ANSWERS.log_prob(reference), scores, BETA)) < 1e-6


def test_kl_in_the_loss_leads_to_its_fixed_point(reference: Steps, scores: Tensor) -> None:
    def advantages(steps: Steps) -> Tensor:
        penalty = BETA * (BATCH.log_prob(steps) - BATCH.log_prob(reference))
        return to_go(rewards_of(steps, reference, scores, 0.0)) - penalty

    found = led_to(BATCH, reference, advantages, rate=RATE)
    assert total_variation(found, loss_optimum(ANSWERS, reference, scores, BETA)) < 1e-6


def twice(steps: Steps, reference: Steps, scores: Tensor) -> Tensor:
    return left_out(rewards_of(steps, reference, scores, 2 * BETA), steps)


def half(steps: Steps, reference: Steps, scores: Tensor) -> Tensor:
    return left_out(rewards_of(steps, reference, scores, BETA / 2), steps)


def none_at_the_eos(steps: Steps, reference: Steps, scores: Tensor) -> Tensor:
    ratio = BATCH.log_prob(steps) - BATCH.log_prob(reference)
    return left_out(rewards_of(steps, reference, scores, BETA) + torch.where(BATCH.eos, BETA * ratio, 0), steps)


def mean_over_each_answer(steps: Steps, reference: Steps, scores: Tensor) -> Tensor:
    advantages = left_out(rewards_of(steps, reference, scores, BETA), steps)
    return advantages / ANSWERS.lengths[answer_of(ANSWERS.lengths)]


def scored_as_if_ended(steps: Steps, reference: Steps, scores: Tensor) -> Tensor:
    return left_out(rewards_of(steps, reference, RAW, BETA), steps)


MISTAKES = (twice, half, none_at_the_eos, scored_as_if_ended)


def lost(found: Tensor, reference: Steps, scores: Tensor) -> tuple[float, float]:
    """Of a policy its share of the possible gain that is missing, and its total variation to the optimum."""
    log_ref = ANSWERS.log_prob(reference)
    best = optimum(log_ref, scores, BETA)
    missing = objective(best, log_ref, scores, BETA) - objective(found, log_ref, scores, BETA)
    return float(missing / possible_gain(log_ref, scores, BETA)), total_variation(found, best)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_leads_beyond_both_bounds(
    reference: Steps, scores: Tensor, mistake: Callable[[Steps, Steps, Tensor], Tensor]
) -> None:
    found = led_to(BATCH, reference, lambda steps: mistake(steps, reference, scores), rate=RATE)
    missing, variation = lost(found, reference, scores)
    assert missing > 0.1 and variation > 0.2


OFFSET = 10.0
"""Added to all scores; the optimum is the same."""


def test_lambda_below_1_leads_away_where_the_critic_is_wrong(reference: Steps, scores: Tensor) -> None:
    """With lambda 1 any critic will do; at 0.95 one that says 0 makes short answers look better."""

    def advantages(steps: Steps, lam: float) -> Tensor:
        rewards = rewards_of(steps, reference, scores + OFFSET, BETA)
        return gae(rewards, torch.zeros_like(rewards), ANSWERS.lengths, EVERY, gamma=1.0, lam=lam)[0]

    right = led_to(BATCH, reference, lambda steps: advantages(steps, 1.0), rate=RATE)
    wrong = led_to(BATCH, reference, lambda steps: advantages(steps, 0.95), rate=RATE / 4)
    assert max(lost(right, reference, scores)) < 1e-6
    assert lost(wrong, reference, scores)[1] > 0.15


def test_a_mean_over_each_answers_tokens_leads_away_where_there_is_no_baseline(
    reference: Steps, scores: Tensor
) -> None:
    """With KL in the reward and a baseline all advantages are 0 at the optimum, and no weights of tokens move it."""

    def shares(advantages: Tensor) -> Tensor:
        return advantages / ANSWERS.lengths[answer_of(ANSWERS.lengths)]

    def rewards(steps: Steps) -> Tensor:
        return rewards_of(steps, reference, scores + OFFSET, BETA)

    same = led_to(BATCH, reference, lambda s: shares(left_out(rewards(s), s)), rate=2 * RATE)
    away = led_to(BATCH, reference, lambda s: shares(to_go(rewards(s))), rate=RATE / 4)
    assert max(lost(same, reference, scores)) < 1e-6
    assert lost(away, reference, scores)[1] > 0.15
