"""Figures over rounds: SelfBLEU against its definition, and findings where they show and where they do not."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from rmfast.evaluation.rounds.diversity import mean_cosine, self_bleu
from rmfast.evaluation.rounds.figures import Answered, Measured, difference_variance, figures_of
from rmfast.evaluation.rounds.findings import findings

TEXTS = ("a b c d e f", "a b c d e f", "a b c x", "", "q r s t u v w", "a a a a b", "z")


def bleu(text: Sequence[str], others: Sequence[Sequence[str]], order: int) -> float:
    """BLEU of one text as its definition has it."""

    def grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    logs = []
    for n in range(1, order + 1):
        counts = grams(text, n)
        if counts:
            most = [max(grams(other, n)[gram] for other in others) for gram in counts]
            matched = sum(min(count, best) for count, best in zip(counts.values(), most, strict=True))
            logs.append(math.log(max(matched, 0.5) / sum(counts.values())))
    nearest = min((abs(len(other) - len(text)), len(other)) for other in others)[1]
    return min(1.0, math.exp(1 - nearest / len(text))) * math.exp(sum(logs) / len(logs))


def test_self_bleu_is_its_definition() -> None:
    words = [text.split() for text in TEXTS if text]
    expected = [[bleu(one, words[:i] + words[i + 1 :], n) for n in (2, 3, 4, 5)] for i, one in enumerate(words)]
    found = self_bleu(TEXTS)
    assert np.isnan(found[3]).all()
    np.testing.assert_allclose(np.delete(found, 3, 0), expected, rtol=1e-12)
    np.testing.assert_allclose(found[0], 1)  # another text says the same


def test_the_mean_cosine_is_over_the_others() -> None:
    features = np.random.default_rng(0).normal(size=(5, 3))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = [np.mean([unit[i] @ unit[j] for j in range(5) if j != i]) for i in range(5)]
    np.testing.assert_allclose(mean_cosine(features), expected)


def measured(gold: dict[str, float], spread: dict[str, dict[str, float]], words: dict[str, int]) -> Measured:
    """80 prompts with 2 answers: gold's mean of each policy, each model's spread of a prompt's two rewards on each
    policy's answers, and of how many words its answers are drawn."""
    draw = np.random.default_rng(1)
    common = draw.normal(size=(80, 1))
    pair = draw.normal(size=(80, 2))
    shape = np.ones((80, 2))

    def texts(name: str) -> list[list[str]]:
        return [[" ".join(f"w{i}" for i in draw.integers(words[name], size=8)) for _ in range(2)] for _ in range(80)]

    policies = {
        name: Answered(
            round=int(name[-1]) if name[-1].isdigit() else 0, control=name.startswith("control"), texts=texts(name),
            entropy=shape, length=shape, cut=0 * shape, log_ratio=shape, cosine=shape,
        )
        for name in gold
    }  # fmt: skip
    rewards = {model: {name: common + of[name] * pair for name in gold} for model, of in spread.items()}
    rewards["gold"] = {name: value + common + 0.1 * draw.normal(size=(80, 2)) for name, value in gold.items()}
    accuracy = {name: {"accuracy": 0.7, "accuracy_low": 0.65, "accuracy_high": 0.75} for name in spread}
    return Measured(policies, rewards, {}, accuracy)


@pytest.mark.parametrize("shows", [True, False])
def test_findings_show_where_they_are_and_do_not_where_they_are_not(shows: bool) -> None:
    names = ("first", "round-1", "control-1", "round-2", "control-2", "round-3", "control-3")
    at = dict(zip(names, (0.0, 1.0, 0.5, 2.0, 0.6, 1.5, 0.7), strict=True))
    gold = at if shows else {name: -value for name, value in at.items()}
    flat = dict.fromkeys(names, 1.0)
    shrinks = flat | {f"control-{n}": 0.5 for n in (1, 2, 3)}
    wider = {f"meta-{n}": dict.fromkeys(names, 1.0 + n) for n in (1, 2, 3)}
    spread = {"reward": shrinks if shows else {**flat, **{f"control-{n}": 2.0 for n in (1, 2, 3)}}}
    # The unit is a model's variance over the first policy's answers: its spread there stays, and grows elsewhere.
    metas = {m: {n: (1.0 if n == "first" else v) for n, v in of.items()} for m, of in wider.items()}
    spread |= metas if shows else {f"meta-{4 - n}": metas[f"meta-{n}"] for n in (1, 2, 3)}
    words = {name: 400 if name == "first" else 60 if name.startswith("round") else 20 for name in names}
    if not shows:
        words = {name: 500 - value for name, value in words.items()}
    found = measured(gold, spread, words)
    said = {one.paper.split()[0]: one for one in findings(found, figures_of(found))}
    expected = {"Under", "Each", "Quality", "The", "PPO"}
    assert {key: said[key].status for key in expected} == dict.fromkeys(
        expected, "shows" if shows else "does not show"
    ), said
    assert said["In"].status == "cannot be told"  # no reward rises


def test_intervals_are_over_prompts_and_a_tie_is_half_a_win() -> None:
    found = measured({"first": 0.0, "round-1": 0.0}, {"reward": {"first": 1, "round-1": 1}}, {"first": 9, "round-1": 9})
    same = found.rewards["gold"]["first"]
    tied = Measured(found.policies, {**found.rewards, "gold": {"first": same, "round-1": same}})
    (one,) = figures_of(tied).comparisons
    assert (one.wins, one.ties, one.losses, one.rate.value) == (0, 1, 0, 0.5)
    assert 0.35 < one.rate.low < 0.5 < one.rate.high < 0.65
    figures = figures_of(found).policies["round-1"]
    by_prompt = found.rewards["reward"]["round-1"].mean(1)
    assert figures.reward["reward"].high - figures.reward["reward"].value == pytest.approx(
        1.96 * by_prompt.std() / len(by_prompt) ** 0.5, rel=0.2
    )
    rewards = np.array([[1.0, 3.0, 5.0]])
    assert difference_variance(rewards)[0, 0] == pytest.approx(np.mean([4, 16, 4, 4, 16, 4]))
