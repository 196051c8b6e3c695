"""What training did to a policy: its figures before and after, and in words."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmfast.report.policy.collapse import find_collapse
from rmfast.report.run_folder import Row, Run, number
from rmfast.report.summary import closing, percent

TRAINING = {
    "reward": "objective/scores",
    "kl": "objective/kl",
    "length": "mean_length",
    "cut_share": "cut_share",
    "cut_value": "cut_value",
    "entropy": "policy/entropy_avg",
}
"""A step's metrics by the names that an evaluation has for them."""
MANY_CUT = 0.2
LITTLE_ENTROPY = 0.2


def as_evaluated(row: Row) -> Row:
    """A step's metrics by the names that an evaluation has for them too; an evaluation's as they are."""
    return dict(row) | {name: row[key] for name, key in TRAINING.items() if key in row}


def trains_policy(run: Run) -> bool:
    """Whether a run trains a policy: its steps have a KL to a reference."""
    return any(TRAINING["kl"] in row for row in run.train)


@dataclass(frozen=True)
class Outcome:
    """The first and the last figures of a policy, of held-out prompts where it was evaluated twice, or of its rollouts.

    `where` says which. Figures are read by the names of an evaluation.
    """

    where: str
    first: Row
    last: Row
    first_step: float
    last_step: float

    def change(self, key: str) -> float:
        """By how much a figure rose; NaN where it is not known."""
        return number(self.last, key) - number(self.first, key)

    @property
    def exploits(self) -> bool:
        """Whether the reward rose and the held-out reward model's fell."""
        return self.change("reward") > 0 and self.change("gold") < 0

    @property
    def good(self) -> bool:
        """Whether the reward rose, and nothing says that it was exploited."""
        return self.change("reward") > 0 and self.known and not self.exploits

    @property
    def known(self) -> bool:
        """Whether the rewards have intervals: those of the prompts of two steps have none."""
        return math.isfinite(number(self.first, "reward_high") + number(self.last, "reward_low"))


def outcome(run: Run) -> Outcome | None:
    """What a run did; None where no figure is known."""
    steps = [as_evaluated(row) for row in run.train]
    for name, rows in run.evals.items():
        known = [row for row in rows if math.isfinite(number(row, "reward"))]
        if len(known) > 1:
            return _between(f"held-out prompts ({name})", *(_completed(row, steps) for row in (known[0], known[-1])))
    known = [row for row in steps if math.isfinite(number(row, "reward"))]
    return _between("the prompts that it trained on", known[0], known[-1]) if known else None


def _between(where: str, first: Row, last: Row) -> Outcome:
    return Outcome(where, first, last, number(first, "step"), number(last, "step"))


def _completed(row: Row, steps: Sequence[Row]) -> Row:
    """An evaluation's row with what only steps tell, as it was in the newest one that is no later, or in the first."""
    before = [step for step in steps if number(step, "step") <= number(row, "step")]
    step = before[-1] if before else steps[0] if steps else {}
    return {name: step.get(name) for name in ("entropy", "cut_share", "cut_value")} | dict(row)


def reward_line(found: Outcome) -> str:
    """The reward before and after with its interval, as in "0.12 to 0.85 (95 % interval 0.80 to 0.90)"."""
    low, high = number(found.last, "reward_low"), number(found.last, "reward_high")
    interval = f" (95 % interval {low:.3g} to {high:.3g})" if math.isfinite(low + high) else ""
    first, last = number(found.first, "reward"), number(found.last, "reward")
    return f"{first:.3g} to {last:.3g}{interval}"


def verdicts(found: Outcome) -> list[str]:
    """What the figures mean, a sentence each."""
    gain = found.change("reward")
    if gain <= 0:
        said = ["The reward did not rise: see whether the KL coefficient is too high or the learning rate too low."]
    elif not found.known:
        said = [
            f"The reward rose by {gain:.3g} between steps of different prompts, which may be noise (ppo.eval_prompts)."
        ]
    elif number(found.first, "reward_high") >= number(found.last, "reward_low"):
        said = ["Whether the reward rose, more prompts or steps would tell: the intervals before and after overlap."]
    else:
        said = [f"The reward rose by {gain:.3g}."]
    if math.isfinite(gold := found.change("gold")):
        words = f"{'fell' if gold < 0 else 'rose'} by {abs(gold):.3g}"
        warning = " while the reward rose: the policy exploits its reward model" if found.exploits else ""
        said.append(f"The reward model that never trained (gold) {words}{warning}.")
    if math.isfinite(kl := number(found.last, "kl")):
        said.append(f"An answer is {kl:.3g} nats (KL) from the reference.")
    if (cut := number(found.last, "cut_share")) > MANY_CUT:
        said.append(f"{percent(cut)} of the answers are cut at ppo.max_new_tokens.")
        if (value := number(found.last, "cut_value")) > max(number(found.first, "cut_value"), 0):
            said.append(
                f"What ppo.truncated bootstrap adds to a cut answer's score rose to {value:.3g}: it pays to be cut. "
                "Raise ppo.max_new_tokens, or set ppo.truncated zero."
            )
    before, after = number(found.first, "entropy"), number(found.last, "entropy")
    if after < LITTLE_ENTROPY * before:
        said.append(f"Entropy fell from {before:.3g} to {after:.3g} nats a token: its answers hardly vary any more.")
    return said


def policy_summary(
    run: Run, *, model: Path, report: Path | None, checkpoints: Path | None = None, data: str | None = None
) -> str:
    """The console's final summary of a run that trained a policy.

    Args:
        run: read from its folder.
        model: the exported policy's folder. report, checkpoints: as in `final_summary`.
        data: source of prompts, for the line to type next.
    """
    found = outcome(run)
    lines = ["No figure of a step is known: nothing tells what this policy learnt."]
    if found is not None:
        lines = [f"Reward on {found.where}: {reward_line(found)}", *verdicts(found)]
    if (collapse := find_collapse(run)) is not None:
        lines.append(collapse.line)
    source = shlex.quote(data) if data else "PROMPTS.jsonl"
    out = shlex.quote(str(model.parent / "samples.jsonl"))
    command = f"sample {shlex.quote(str(model.parent))} --data {source} --limit 8 --n 4 --out {out}"
    return closing(lines, command, model=model, report=report, checkpoints=checkpoints)
