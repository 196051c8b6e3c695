"""From what policies answered, and how models score that, to figures with intervals.

P prompts, n answers of each policy to each. Intervals are 95 %, from a bootstrap over prompts; all policies share the
draws, so that differences are paired.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from rmfast.evaluation.diagnostics.resample import Figure, figure, of_sums, resampled
from rmfast.evaluation.metrics import Floats, wilson
from rmfast.evaluation.rounds.diversity import ORDERS, self_bleu
from rmfast.jsonio import to_json

GOLD: Final = "gold"
JUDGE: Final = "judge"
FIRST_MODEL = "reward"
"""The first reward model's name."""
FIRST = "first"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A policy's answers: `texts` [P][n]; `log_prob`, `entropy`, `length` and `cut` [P, n]; `log_ratio` [P, n] to the
    first policy; `cosine` [P, n], of features of the first reward model."""

    round: int
    control: bool
    texts: Sequence[Sequence[str]]
    entropy: Floats
    length: Floats
    cut: Floats
    log_ratio: Floats
    cosine: Floats


@dataclass(frozen=True)
class Measured:
    """Policies by name, `first` first, and each model's rewards [P, n] of each policy's answers.

    Attributes:
        votes: of pairs of policies (one, other) a judge's votes [P], 1 for the first answer of `one`, -1 against, 0 a
            tie, nan no answer. accuracy: of each reward model on held-out pairs, as its run's summary has it.
    """

    policies: Mapping[str, Answered]
    rewards: Mapping[str, Mapping[str, Floats]]
    votes: Mapping[tuple[str, str], Floats] = field(default_factory=dict)
    accuracy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """How often a policy's answers are better than another's by someone: `rate` counts a tie as half a win."""

    policy: str
    against: str
    by: Literal["gold", "judge"]
    wins: float
    ties: float
    losses: float
    rate: Figure


@dataclass(frozen=True, kw_only=True)
class PolicyFigures:
    """A policy in figures.

    Attributes:
        reward: by model, the mean. gain: by model, over the first policy, in standard deviations of the model's rewards
            of the first policy's answers. drift: by model, the variance of the difference of two answers' rewards, over
            the variance of its rewards of the first policy's answers.
        self_bleu: by n-gram's length, and "mean".
    """

    round: int
    control: bool
    reward: dict[str, Figure]
    gain: dict[str, Figure]
    drift: dict[str, Figure]
    kl: Figure
    entropy: Figure
    length: Figure
    cut_share: Figure
    self_bleu: dict[str, Figure]
    cosine: Figure


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """All figures of an iteration so far."""

    prompts: int
    answers: int
    rounds: int
    control: bool
    policies: dict[str, PolicyFigures]
    comparisons: list[Comparison]
    accuracy: dict[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The content of a file."""
        return to_json(self)

    def compared(self, policy: str, against: str, by: str) -> Comparison | None:
        """How a policy does against another by someone."""
        asked = (policy, against, by)
        return next((c for c in self.comparisons if (c.policy, c.against, c.by) == asked), None)


def figures_of(measured: Measured) -> Rounds:
    """All figures."""
    policies = measured.policies
    first = policies[FIRST]
    return Rounds(
        prompts=len(first.length),
        answers=first.length.shape[1],
        rounds=max(one.round for one in policies.values()),
        control=any(one.control for one in policies.values()),
        policies={name: _of_policy(name, one, measured) for name, one in policies.items()},
        comparisons=_comparisons(measured),
        accuracy=dict(measured.accuracy),
    )


def _of_policy(name: str, one: Answered, measured: Measured) -> PolicyFigures:
    rewards = {model: (of[name], of[FIRST]) for model, of in measured.rewards.items() if name in of}
    bleu = bleu_by_prompt(one.texts)
    return PolicyFigures(
        round=one.round,
        control=one.control,
        reward={model: mean(of) for model, (of, _) in rewards.items()},
        gain={model: mean((of - first) / (first.std() or 1.0)) for model, (of, first) in rewards.items()},
        drift={model: mean(difference_variance(of) / spread(first)) for model, (of, first) in rewards.items()},
        kl=mean(one.log_ratio),
        entropy=mean(one.entropy),
        length=mean(one.length),
        cut_share=mean(one.cut),
        self_bleu={str(n): mean(bleu[:, [place]]) for place, n in enumerate(ORDERS)} | {"mean": mean(bleu)},
        cosine=mean(one.cosine),
    )


def bleu_by_prompt(texts: Sequence[Sequence[str]]) -> Floats:
    """SelfBLEU [P, 4] of each prompt's answers, a mean over draws: an answer is compared with those to other prompts,
    one each."""
    draws = [self_bleu([of_prompt[draw] for of_prompt in texts]) for draw in range(len(texts[0]))]
    return nan_mean(np.stack(draws), 0)


def difference_variance(rewards: Floats) -> Floats:
    """[P, 1]: the variance of the difference of two answers to a prompt, twice the unbiased variance of [P, n]."""
    return 2 * rewards.var(axis=1, ddof=1, keepdims=True)


def spread(first: Floats) -> float:
    """The unit of drift: the variance of a model's rewards of the first policy's answers."""
    return float(first.var()) or 1.0


def mean(values: Floats) -> Figure:
    """The mean of [P, n] over prompts, each prompt's first; what is nan does not count."""
    by_prompt = nan_mean(values, 1)
    known = by_prompt[np.isfinite(by_prompt)]
    if not known.size:
        return Figure(np.nan)
    return of_sums(lambda sums: sums[..., 0] / sums[..., 1], np.stack([known, np.ones(len(known))], axis=1))


def ratio(one: Floats, other: Floats) -> Figure:
    """The ratio of two means over the same prompts [P]."""
    return of_sums(lambda sums: sums[..., 0] / sums[..., 1], np.stack([one.ravel(), other.ravel()], axis=1))


def nan_mean(values: Floats, axis: int) -> Floats:
    """The mean of what is no nan; nan where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis) / known.sum(axis))


def pairs_to_compare(policies: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of policies: each with the first, with the one before it, and each round's with its control."""
    names = list(policies)
    pairs: list[tuple[str, str]] = []
    for name in names:
        kind, _, number = name.partition("-")
        others = (
            [FIRST, f"{kind}-{int(number) - 1}", *([f"control-{number}"] if kind == "round" else [])] if number else []
        )
        pairs += [(name, other) for other in others if other in names]
    return pairs


def _comparisons(measured: Measured) -> list[Comparison]:
    found = []
    for one, other in pairs_to_compare(measured.policies):
        if (gold := measured.rewards.get(GOLD)) is not None:
            found.append(_compared(one, other, GOLD, np.sign(gold[one] - gold[other])))
        if (one, other) in measured.votes:
            found.append(_compared(one, other, JUDGE, measured.votes[one, other][:, None]))
    return found


def _compared(one: str, other: str, by: Literal["gold", "judge"], votes: Floats) -> Comparison:
    """Of votes [P, n], of a sign each."""
    known = np.isfinite(votes)
    wins, ties, losses = (
        float(np.where(known, test, False).sum() / max(known.sum(), 1)) for test in (votes > 0, votes == 0, votes < 0)
    )
    rate = mean(np.where(known, 0.5 + 0.5 * np.sign(votes), np.nan))
    if not rate.high - rate.low > 1e-12:  # resampling is blind where all prompts say the same
        prompts = int(known.any(1).sum())
        rate = Figure(rate.value, *(wilson(rate.value * prompts, prompts) if prompts else (np.nan, np.nan)))
    return Comparison(one, other, by, wins, ties, losses, rate)


def difference(one: Floats, other: Floats) -> Figure:
    """The paired difference of the means of two policies' values [P, n]."""
    gaps = nan_mean(one, 1) - nan_mean(other, 1)
    known = gaps[np.isfinite(gaps)]
    if not known.size:
        return Figure(np.nan)
    return figure(float(known.mean()), resampled(known[:, None])[:, 0] / len(known) if len(known) > 1 else None)
