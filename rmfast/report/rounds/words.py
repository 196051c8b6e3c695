"""What rounds of MetaRM and PPO made of a policy, in words."""

import math
from collections.abc import Sequence
from pathlib import Path

from rmfast.evaluation.rounds.figures import FIRST, GOLD, JUDGE, Comparison, Rounds
from rmfast.evaluation.rounds.findings import Finding, shown

COUNTED = {
    "shows": "seen", "does not show": "not seen", "cannot be told": "cannot be told",
    "was not measured": "not measured",
}  # fmt: skip
"""A finding's status, of several."""
BY = {GOLD: "gold", JUDGE: "the LLM judge"}


def named(policy: str) -> str:
    """A policy's name for people."""
    kind, _, number = policy.partition("-")
    return {"first": "first policy", "round": f"round {number}", "control": f"control {number}"}[kind]


def model_name(model: str) -> str:
    """A reward model's name for people."""
    names = {"reward": "first reward model", "gold": "gold"}
    return names.get(model, f"MetaRM of round {model.partition('-')[2]}")


def won(one: Comparison) -> str:
    """A win rate with its shares, as in "58 % [52, 64] (40 % won, 36 % ties, 24 % lost)"."""
    rate, interval = one.rate, ""
    if math.isfinite(rate.low + rate.high):
        interval = f" [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    return f"{rate.value:.0%}{interval} ({one.wins:.0%} won, {one.ties:.0%} ties, {one.losses:.0%} lost)"


def verdict(found: Rounds) -> tuple[str, bool]:
    """The headline's sentence, and whether it is good news: the last round beside the first policy."""
    last = f"round-{found.rounds}"
    compared = found.compared(last, FIRST, GOLD) or found.compared(last, FIRST, JUDGE)
    if compared is None:
        return (
            "Nobody but the reward models compares the policies: name a gold model (ppo.gold) or an LLM judge.",
            False,
        )
    rate, by = compared.rate, BY[compared.by]
    if rate.low > 0.5:
        now, before = (found.policies[name].length.value for name in (last, FIRST))
        other = not 0.5 < now / before < 2
        warning = f" Its answers have {now:.3g} tokens, the first one's {before:.3g}: read them." if other else ""
        return f"The policy of the last round is better than the first one by {by}.{warning}", not other
    if rate.high < 0.5:
        return f"The policy of the last round is worse than the first one by {by}: it learnt its models' faults.", False
    return f"Whether the last round's policy is better than the first one by {by}, more prompts would tell.", False


def summary(found: Rounds, said: Sequence[Finding], page: Path) -> list[str]:
    """The console's lines after a round."""
    last = f"round-{found.rounds}"
    figures = found.policies[last]
    lines = [
        f"\nafter round {found.rounds}: KL {shown(figures.kl, '{:.3g}')} nats an answer, length "
        f"{shown(figures.length, '{:.1f}')}, SelfBLEU {shown(figures.self_bleu['mean'])}"
    ]
    if (gain := figures.gain.get(f"meta-{found.rounds}")) is not None:
        lines.append(f"gain over the first policy by its round's reward model: {shown(gain, '{:+.2f}')} std")
    lines += [
        f"{named(one.policy)} against {named(one.against)} by {BY[one.by]}: {won(one)}"
        for one in found.comparisons
        if found.policies[one.policy].round == found.rounds
    ]
    counts = {words: sum(one.status == status for one in said) for status, words in COUNTED.items()}
    told = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
    return [*lines, verdict(found)[0], f"findings of the paper: {told}; report: {page}"]
