"""From raw scores to token rewards: the order of what happens to a score, cut answers, and where KL is."""

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from rmfast.evaluation.combine import Rule
from rmfast.trainer.ppo import rewards
from rmfast.trainer.ppo.moments import Moments
from rmfast.trainer.ppo.packed import sums
from rmfast.trainer.ppo.rewards import RewardOptions, Scored, Truncated, token_rewards, with_bootstrap
from tests.trainer.ppo.answers import kl_rewards, packed, random_answers, rows

NAN = float("nan")


def options(**changes: Any) -> RewardOptions:
    return RewardOptions(**({"max_new_tokens": 6} | changes))


def score_answers(
    raw: Tensor, lengths: Tensor, cut: Tensor, o: RewardOptions, moments: Moments | None = None
) -> Scored:
    """Of one reward model."""
    history = None if moments is None else (moments,)
    return rewards.score_answers(raw[:, None], lengths, cut, torch.zeros_like(lengths), o, history)


def score_by_hand(raw: float, length: int, cut: bool, o: RewardOptions, moments: tuple[float, float] | None) -> float:
    score = raw if moments is None else (raw - moments[0]) / moments[1]
    if o.clip:
        score = max(-o.clip, min(o.clip, score))
    start = o.max_new_tokens - o.overlong_buffer
    if o.overlong_buffer and length > start:
        score -= o.overlong_penalty * (length - start) / o.overlong_buffer
    if cut and o.truncated == "zero":
        return 0.0
    return o.truncated_score if cut and o.truncated == "penalty" else score


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("overlong", [{}, {"overlong_buffer": 3, "overlong_penalty": 0.7}])
@pytest.mark.parametrize("clip", [0.0, 0.8])
@pytest.mark.parametrize("truncated", ["zero", "penalty", "bootstrap", "mask"])
def test_scores_in_their_order(truncated: Truncated, clip: float, overlong: dict[str, Any], normalised: bool) -> None:
    answers, before = random_answers(), [0.3, -1.2, 5.0]
    chosen = options(truncated=truncated, clip=clip, truncated_score=-2.5, **overlong)
    kept = [not cut or truncated != "mask" for cut in answers.cut]
    history = before + [score for score, keep in zip(answers.raw, kept, strict=True) if keep]
    moments = (statistics.fmean(history), statistics.stdev(history)) if normalised else None
    want = [
        score_by_hand(raw, length, cut, chosen, moments) if keep else 0.0
        for raw, length, cut, keep in zip(answers.raw, answers.lengths.tolist(), answers.cut, kept, strict=True)
    ]
    start = Moments().updated(rows(before)) if normalised else None
    scored = score_answers(rows(answers.raw), answers.lengths, torch.tensor(answers.cut), chosen, start)
    torch.testing.assert_close(scored.scores, rows(want), rtol=1e-12, atol=1e-12)
    assert scored.kept.tolist() == kept
    assert (scored.moments[0].count if scored.moments else None) == (len(history) if normalised else None)


@pytest.mark.parametrize("rule", ["mean", "median", "worst", "mean-k-std", "majority"])
def test_members_are_normalised_each_by_its_moments_and_then_combined(rule: Rule) -> None:
    """Trap 19: one normaliser each. The last answer is masked: it has no vote, and none votes on it."""
    raw = torch.tensor([[1.0, 10.0, -3.0], [2.0, 40.0, -3.5], [4.0, 10.0, 0.0], [9.0, 20.0, 5.0], [NAN, NAN, NAN]])
    cut, lengths, groups = torch.arange(5) == 4, torch.ones(5, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 0])
    before = (Moments(), Moments().updated(rows([0.0, 100.0])), Moments())
    scored = rewards.score_answers(raw, lengths, cut, groups, options(truncated="mask", rule=rule, k=0.5), before)
    kept = [column[:4] for column in raw.double().T.tolist()]
    history = [kept[0], [0.0, 100.0, *kept[1]], kept[2]]
    assert scored.moments is not None
    assert [(one.count, one.mean) for one in scored.moments] == [
        (len(one), pytest.approx(statistics.fmean(one))) for one in history
    ]
    scale = [(statistics.fmean(one), statistics.stdev(one)) for one in history]
    answers = [[(x - m) / s for x, (m, s) in zip(one, scale, strict=True)] for one in zip(*kept, strict=True)]
    by_hand = {
        "mean": [statistics.fmean(one) for one in answers],
        "median": [sorted(one)[1] for one in answers],
        "worst": [min(one) for one in answers],
        "mean-k-std": [statistics.fmean(one) - 0.5 * statistics.pstdev(one) for one in answers],
        # The second beats the first by 2 members to 1, the third the first by 2 to none and the second by 2 to 1.
        "majority": [-(1 + 2) / 6, (1 - 1) / 6, (2 + 1) / 6, 0.0],
    }[rule]
    torch.testing.assert_close(scored.scores, rows([*by_hand, 0.0]), rtol=1e-12, atol=1e-12)


def test_the_moments_take_a_batch_in_before_it_is_normalised() -> None:
    """Trap 19: one order, and it is fixed."""
    scored = score_answers(rows([1.0, 3.0]), torch.tensor([1, 1]), torch.tensor([False, False]), options(), Moments())
    torch.testing.assert_close(scored.scores, rows([-1, 1]) / 2**0.5)
    assert scored.moments == (Moments(2, 2.0, 2.0),)


def test_only_the_stop_reason_says_that_an_answer_is_cut() -> None:
    """Trap 4: one that ended with its last possible token is whole, one that is short may be cut."""
    cut = torch.tensor([False, True])
    scored = score_answers(rows([2.0, 2.0]), torch.tensor([6, 3]), cut, options(truncated="penalty"))
    assert scored.scores.tolist() == [2.0, -1.0]


def test_masked_answers_may_be_nan_and_leave_no_trace() -> None:
    raw, cut, lengths = rows([1.0, NAN, 4.0]), torch.tensor([False, True, False]), torch.tensor([1, 2, 1])
    scored = score_answers(raw, lengths, cut, options(truncated="mask"), Moments())
    assert scored.moments == (Moments().updated(rows([1.0, 4.0])),)
    assert scored.scores[1] == 0 and scored.scores.isfinite().all()
    old, reference = rows([-1.0, NAN, NAN, -2.0]), rows([-1.5, -1.0, NAN, -1.0])
    rewards = token_rewards(scored.scores, lengths, scored.kept, old, reference, kl=0.1)
    torch.testing.assert_close(rewards, rows([-0.05 + scored.scores[0], 0, 0, 0.1 + scored.scores[2]]))


@pytest.mark.parametrize(("length", "lost"), [(1, 0.0), (6, 0.0), (7, 0.5), (8, 1.0), (9, 1.5), (10, 2.0)])
def test_the_overlong_penalty_grows_in_the_last_tokens(length: int, lost: float) -> None:
    chosen = options(max_new_tokens=10, overlong_buffer=4, overlong_penalty=2.0, truncated="bootstrap")
    scored = score_answers(rows([1.0]), torch.tensor([length]), torch.tensor([length == 10]), chosen)
    assert scored.scores.item() == pytest.approx(1.0 - lost)


@pytest.mark.parametrize("kl", [0.0, 0.05, 3.0])
def test_kl_is_at_every_token_and_the_score_at_the_last(kl: float) -> None:
    """Trap 1: the last real token, be it the eos or the last that was possible; the eos has its KL as well."""
    answers = random_answers()
    kept = torch.ones(len(answers.raw), dtype=torch.bool)
    old, reference = packed(answers.old), packed(answers.reference)
    got = token_rewards(rows(answers.raw), answers.lengths, kept, old, reference, kl=kl)
    torch.testing.assert_close(got, packed(kl_rewards(answers, answers.raw, kl)), rtol=1e-12, atol=1e-12)


def test_no_clip_reaches_the_kl() -> None:
    """Trap 16: a clip of 0.8 bounds the score, and the KL of 50 nats at a coefficient of 1 stays."""
    lengths = torch.tensor([2])
    scored = score_answers(rows([9.0]), lengths, torch.tensor([False]), options(clip=0.8))
    rewards = token_rewards(scored.scores, lengths, scored.kept, rows([-1.0, 0.0]), rows([-51.0, -50.0]), kl=1.0)
    torch.testing.assert_close(rewards, rows([-50.0, -50.0 + 0.8]))


def test_an_answers_rewards_sum_to_its_score_less_the_coefficient_times_its_kl() -> None:
    """Trap 17: the KL of an answer is the sum over its tokens."""
    answers = random_answers()
    log_ratio = packed(answers.old) - packed(answers.reference)
    rewards = packed(kl_rewards(answers, answers.raw, 0.3))
    torch.testing.assert_close(
        sums(rewards, answers.lengths), rows(answers.raw) - 0.3 * sums(log_ratio, answers.lengths)
    )
    by_hand = [sum(a) - sum(b) for a, b in zip(answers.old, answers.reference, strict=True)]
    torch.testing.assert_close(sums(log_ratio, answers.lengths), rows(by_hand))


def test_the_value_of_what_might_follow_joins_a_cut_answers_last_reward_alone() -> None:
    """Trap 3: and the rewards that were given, which are logged, stay as they are."""
    rewards, lengths, cut = rows([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([2, 2, 1]), torch.tensor([True, False, True])
    with_it = with_bootstrap(rewards, lengths, cut, rows([10.0, NAN, 30.0]), gamma=0.5)
    assert with_it.tolist() == [1.0, 7.0, 3.0, 4.0, 20.0]
    assert rewards.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_an_answer_without_tokens_is_refused() -> None:
    """Its score would reach the answer before."""
    with pytest.raises(ValueError, match="last_tokens: an answer has no tokens"):
        token_rewards(rows([1, 2]), torch.tensor([2, 0]), torch.tensor([True, True]), rows([0, 0]), rows([0, 0]), kl=0)
