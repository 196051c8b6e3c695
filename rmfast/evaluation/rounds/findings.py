"""What the figures of several rounds say of the paper's findings (Part II, section 3.2 and table 2; the AAAI paper's
tables 2 and 3, figure 1), a sentence each, also where a finding does not show."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rmfast.evaluation.diagnostics.resample import Figure
from rmfast.evaluation.rounds.figures import (
    FIRST,
    FIRST_MODEL,
    GOLD,
    JUDGE,
    Answered,
    Measured,
    Rounds,
    bleu_by_prompt,
    difference,
    difference_variance,
    ratio,
    spread,
)

Status = Literal["shows", "does not show", "cannot be told", "was not measured"]


@dataclass(frozen=True)
class Finding:
    """`paper`: what the paper found. `words`: what is found here."""

    paper: str
    status: Status
    words: str


def findings(measured: Measured, found: Rounds) -> list[Finding]:
    """All findings that rounds can show, in the order of the paper's argument."""
    return [
        _drifts(measured, found),
        _restored(measured, found),
        _accuracy_stays(found),
        *_better_than_first(found),
        _rises_then_falls(measured, found),
        *_better_than_control(found),
        _diversity(measured, found),
        _reward_goes_on(measured, found),
    ]


def _status(sides: Sequence[int]) -> Status:
    """Of the sides of intervals on which a finding would have them all above 0."""
    if any(side < 0 for side in sides):
        return "does not show"
    return "shows" if sides and all(side > 0 for side in sides) else "cannot be told"


def _side(one: Figure, middle: float) -> int:
    """Where an interval is, beside a value."""
    return int(one.low > middle) - int(one.high < middle)


def shown(one: Figure, form: str = "{:.3f}") -> str:
    """A figure with its interval."""
    interval = f" [{form.format(one.low)}, {form.format(one.high)}]" if np.isfinite(one.low + one.high) else ""
    return form.format(one.value) + interval


def _trained(measured: Measured) -> list[tuple[str, Answered]]:
    """The policies of the rounds, without the first and the control's."""
    return [(name, one) for name, one in measured.policies.items() if name != FIRST and not one.control]


def _drifts(measured: Measured, found: Rounds) -> Finding:
    """AAAI, figure 1."""
    of_model = measured.rewards[FIRST_MODEL]
    first = difference_variance(of_model[FIRST])
    names = [name for name in measured.policies if name != FIRST]
    ratios = {name: ratio(difference_variance(of_model[name]), first) for name in names}
    against = [name for name in names if name.startswith("control")] or names  # who were trained against that model
    told = ", ".join(f"{shown(one)} times for {name}" for name, one in ratios.items())
    return Finding(
        "Under one reward model, the rewards of a prompt's answers become alike as a policy is trained against it"
        f"{' (the control is)' if against != names else ''}.",
        _status([-_side(ratios[name], 1.0) for name in against]),
        "The variance of the difference of two answers' rewards under the first reward model, over that of the first "
        f"policy's answers: {told}.",
    )


def _restored(measured: Measured, found: Rounds) -> Finding:
    """Each round's MetaRM beside the reward model before it, on the answers that it was made for."""
    ratios: dict[int, Figure] = {}
    for number in (one.round for _, one in _trained(measured)):
        policy = FIRST if number == 1 else f"round-{number - 1}"
        models = (f"meta-{number}", FIRST_MODEL if number == 1 else f"meta-{number - 1}")
        after, before = (
            difference_variance(measured.rewards[m][policy]) / spread(measured.rewards[m][FIRST]) for m in models
        )
        ratios[number] = ratio(after, before)
    told = ", ".join(f"{shown(one)} times in round {number}" for number, one in ratios.items())
    return Finding(
        "MetaRM tells the answers of the newest policy apart better than the reward model before it.",
        _status([_side(one, 1.0) for one in ratios.values()]),
        "That variance under the round's reward model over the one under the model before, on the answers of the "
        f"policy that the round begins with, each model's rewards in its standard deviations: {told}.",
    )


def _accuracy_stays(found: Rounds) -> Finding:
    """AAAI: validation curves are unchanged."""
    paper = "MetaRM leaves the accuracy on held-out preferences as it was."
    first = found.accuracy.get(FIRST_MODEL, {})
    others = {name: one for name, one in found.accuracy.items() if name.startswith("meta-")}
    if "accuracy" not in first or not others:
        return Finding(paper, "was not measured", "There are no held-out preferences (data.eval).")
    inside = [first["accuracy_low"] <= one["accuracy"] <= first["accuracy_high"] for one in others.values()]
    interval = f"[{first['accuracy_low']:.1%}, {first['accuracy_high']:.1%}]"
    told = ", ".join(f"{one['accuracy']:.1%} for {name}" for name, one in others.items())
    words = f"{first['accuracy']:.1%} {interval} for the first reward model, {told}."
    return Finding(paper, "shows" if all(inside) else "does not show", words)


def _sources(found: Rounds) -> list[str]:
    """Who compares policies."""
    return [by for by in (GOLD, JUDGE) if any(one.by == by for one in found.comparisons)]


def _by_each(found: Rounds, paper: str, against: Callable[[int], str], what: str, missing: str) -> Iterator[Finding]:
    """Win rates of each round's policy against another one, a finding for each who compares."""
    for by in _sources(found):
        rates = {n: found.compared(f"round-{n}", against(n), by) for n in range(1, found.rounds + 1)}
        known = {number: one.rate for number, one in rates.items() if one is not None}
        if known:
            told = ", ".join(f"{shown(rate, '{:.0%}')} in round {number}" for number, rate in known.items())
            words = f"Win rate against {what} by {'the gold model' if by == GOLD else 'the LLM judge'}: {told}."
            yield Finding(paper, _status([_side(rate, 0.5) for rate in known.values()]), words)
            continue
        yield Finding(paper, "was not measured", missing)
    if not _sources(found):
        yield Finding(paper, "was not measured", "Nobody compares: name a gold model (ppo.gold) or an LLM judge.")


def _better_than_first(found: Rounds) -> Iterator[Finding]:
    """Part II, table 2."""
    yield from _by_each(found, "Each round's policy is better than SFT.", lambda n: FIRST, "the first policy", "")


def _better_than_control(found: Rounds) -> Iterator[Finding]:
    """AAAI, table 2."""
    paper, missing = "The policy of MetaRM is better than that of plain PPO.", "There is no control (iterate.control)."
    if not found.control:
        yield Finding(paper, "was not measured", missing)
        return
    yield from _by_each(found, paper, lambda n: f"control-{n}", "plain PPO of the same round", missing)


def _rises_then_falls(measured: Measured, found: Rounds) -> Finding:
    """Part II, table 2: round 3 is the best of 4 in dialogue, 4 of 5 in summaries."""
    paper = "Quality rises over the first rounds and falls in the last (the best of the paper's are rounds 3 and 4)."
    gold, names = measured.rewards.get(GOLD), [FIRST, *(name for name, _ in _trained(measured))]
    if gold is None:
        return Finding(paper, "was not measured", "There is no gold model (ppo.gold).")
    means = [float(gold[name].mean()) for name in names]
    best, last = int(np.argmax(means)), len(names) - 1
    if best == 0:
        gap = difference(gold[names[1]], gold[FIRST])
        words = f"Gold is highest for the first policy; round 1 is {shown(gap, '{:+.3f}')} from it."
        return Finding(paper, "does not show" if gap.side < 0 else "cannot be told", words)
    if best == last:
        rise = difference(gold[names[last]], gold[names[last - 1]])
        words = (
            f"Gold is highest after the last round, {shown(rise, '{:+.3f}')} from the one before: more rounds would "
        )
        return Finding(paper, "cannot be told" if found.rounds < 3 else "does not show", words + "tell where it falls.")
    fall = difference(gold[names[last]], gold[names[best]])
    words = f"Gold is highest after round {best}; the last round is {shown(fall, '{:+.3f}')} from it."
    return Finding(paper, "shows" if fall.side < 0 else "cannot be told", words)


def _diversity(measured: Measured, found: Rounds) -> Finding:
    """AAAI, table 3: SFT .04 to .07, MetaRM .25 to .41, plain PPO .29 to .47."""
    last = f"round-{found.rounds}"
    names = [FIRST, last, *([f"control-{found.rounds}"] if found.control else [])]
    bleu = {name: bleu_by_prompt(measured.policies[name].texts).mean(1, keepdims=True) for name in names}
    told = ", ".join(f"{shown(found.policies[name].self_bleu['mean'])} for {name}" for name in names)
    sides = [difference(bleu[last], bleu[FIRST]).side]
    paper = "PPO makes answers more alike than SFT's"
    if found.control:
        paper += ", and MetaRM's less so than plain PPO's"
        sides.append(difference(bleu[names[2]], bleu[last]).side)
    return Finding(f"{paper} (SelfBLEU).", _status(sides), f"SelfBLEU, mean of n = 2 to 5: {told}.")


def _reward_goes_on(measured: Measured, found: Rounds) -> Finding:
    """Part II, figure 17."""
    paper = "In a late round the reward goes on rising where quality does not: it is no longer to be trusted."
    gold, last = measured.rewards.get(GOLD), found.rounds
    if gold is None or last < 2:
        return Finding(paper, "was not measured", "It takes a gold model (ppo.gold) and two rounds.")
    now, before = f"round-{last}", f"round-{last - 1}"
    reward = difference(*(measured.rewards[f"meta-{last}"][name] for name in (now, before)))
    quality = difference(gold[now], gold[before])
    words = f"In round {last} its reward changed by {shown(reward, '{:+.3f}')}, gold by {shown(quality, '{:+.3f}')}."
    if reward.side > 0 and quality.side < 0:
        return Finding(paper, "shows", words)
    return Finding(paper, "does not show" if reward.side > 0 and quality.side > 0 else "cannot be told", words)
