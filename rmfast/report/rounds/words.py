"""What rounds of MetaRM and PPO made of a policy, in words."""

import math
from collections.abc import Sequence
from pathlib import Path

from rmfast.evaluation.rounds.figures import FIRST, GOLD, JUDGE, Comparison, Rounds
from rmfast.evaluation.rounds.findings import Finding, shown

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
        own = found.policies[last].gain.get(f"meta-{found.rounds}")
        gain = "" if own is None else f": its own reward model's gain is {shown(own, '{:+.2f}')} std"
        return f"Nobody but the reward models compares policies (ppo.gold, iterate.judge_url){gain}.", False
    rate, by = compared.rate, BY[compared.by]
    if rate.low > 0.5:
        return f"The policy of the last round is better than the first one by {by}.", True
    if rate.high < 0.5:
        return f"The policy of the last round is worse than the first one by {by}: it learnt its reward models' faults.", False
    return f"Whether the last round's policy is better than the first one by {by}, more prompts would tell.", False


def summary(found: Rounds, said: Sequence[Finding], page: Path) -> list[str]:
    """The console's lines after a round."""
    last = f"round-{found.rounds}"
    figures = found.policies[last]
    lines = [
        f"\nround {found.rounds}: KL {shown(figures.kl, '{:.3g}')} nats an answer, length {shown(figures.length, '{:.1f}')}, "
        f"SelfBLEU {shown(figures.self_bleu['mean'])}"
    ]
    if (own := figures.gain.get(f"meta-{found.rounds}")) is not None:
        lines.append(f"its reward, by its own reward model: {shown(own, '{:+.2f}')} std above the first policy's")
    lines += [
        f"{named(one.policy)} against {named(one.against)} by {BY[one.by]}: {won(one)}"
        for one in found.comparisons
        if found.policies[one.policy].round == found.rounds
    ]
    counts = ", ".join(f"{sum(one.status == status for one in said)} {status}" for status in dict.fromkeys(s.status for s in said))
    return [*lines, verdict(found)[0], f"findings of the paper: {counts}; report: {page}"]
