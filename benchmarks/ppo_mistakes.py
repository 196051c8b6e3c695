"""Mistakes of PPO that no config key makes, each planted while a context is open."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from rmfast.trainer.ppo import learner
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import AdvantageOptions, Experience, Read, experience
from rmfast.trainer.ppo.moments import Moments
from rmfast.trainer.ppo.packed import answer_of, last_tokens
from rmfast.trainer.ppo.rewards import RewardOptions, Scored, score_answers

Mistake = Callable[[], AbstractContextManager[object]]


def no_kl_at_the_eos() -> AbstractContextManager[object]:
    """The reward of an eos has no KL penalty."""

    def planted(answers: Answers, scored: Scored, read: Read, options: AdvantageOptions, *, kl: float) -> Experience:
        ends = last_tokens(answers.lengths)[~answers.cut]
        reference = read.reference.index_copy(0, ends, read.old_log_prob[ends])
        return experience(answers, scored, replace(read, reference=reference), options, kl=kl)

    return patch.object(learner, "experience", planted)


def mean_over_each_answer() -> AbstractContextManager[object]:
    """An answer's tokens share the weight of one: the loss is a mean over answers of the mean over their tokens."""

    def planted(answers: Answers, scored: Scored, read: Read, options: AdvantageOptions, *, kl: float) -> Experience:
        found = experience(answers, scored, read, options, kl=kl)
        return replace(found, advantage=found.advantage / answers.lengths[answer_of(answers.lengths)])

    return patch.object(learner, "experience", planted)


def cut_answers_scored_as_if_ended() -> AbstractContextManager[object]:
    """Whatever ppo.truncated says, a cut answer keeps the score of its text."""

    def planted(
        raw: Tensor,
        lengths: Tensor,
        cut: Tensor,
        groups: Tensor,
        options: RewardOptions,
        moments: Sequence[Moments] | None = None,
    ) -> Scored:
        return score_answers(raw, lengths, torch.zeros_like(cut), groups, options, moments)

    return patch.object(learner, "score_answers", planted)
