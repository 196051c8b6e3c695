"""The mark of a policy that exploits its reward model, and what else moved when it began.

**The rule.** A policy has collapsed onto its reward model where, at a run's last evaluation that has both rewards,

1. the held-out reward model's (gold's) 95 % interval is below that of an earlier evaluation, and the fall is larger
   than the half interval of the first one;
2. the reward's interval is above that of the first evaluation, and the reward is no less than at the earlier one.

It began at that earlier evaluation, of several at the one with the highest gold. Gold is asked for because nothing else
can tell: Secrets of RLHF, Part I names the signs of a collapse, a KL and a length that jump, a perplexity that falls, a
reward with a long right tail, and a policy that learns what it should shows most of them too. They are listed, and
decide nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rmfast.report.run_folder import Row, Run, number

SIGNS = (
    ("objective/kl", "KL of an answer (nats)", "jumps"),
    ("mean_length", "Length of an answer (tokens)", "jumps"),
    ("perplexity", "Perplexity of its tokens", "falls"),
    ("entropy_per_token", "Entropy of a token (nats)", "falls"),
    ("objective/scores_skew", "Skewness of rewards", "rises: a long right tail"),
    ("disagreement", "Disagreement of the members (std)", "rises"),
    ("cut_share", "Share of cut answers", "jumps"),
)
"""A step's metric, what it says, and what it does in a collapse."""


@dataclass(frozen=True)
class Collapse:
    """The held-out set that shows it, and its evaluations: the one at which it began, and the last."""

    name: str
    best: Row
    last: Row

    @property
    def began(self) -> float:
        """The step at which it began."""
        return number(self.best, "step")

    @property
    def line(self) -> str:
        """What happened, in a sentence."""
        gold, reward = ([number(row, key) for row in (self.best, self.last)] for key in ("gold", "reward"))
        return (
            f"Collapse: since step {self.began:,.0f} gold fell from {gold[0]:.3g} to {gold[1]:.3g} while the reward "
            f"went from {reward[0]:.3g} to {reward[1]:.3g}: the policy exploits its reward model, and "
            "that of this step was better."
        )


def find_collapse(run: Run) -> Collapse | None:
    """The collapse that a run's last evaluations show by the rule above; None where none does."""
    for name, rows in run.evals.items():
        known = [row for row in rows if all(math.isfinite(number(row, f"{key}_low")) for key in ("gold", "reward"))]
        if len(known) > 1 and (found := _judged(name, known)) is not None:
            return found
    return None


def _judged(name: str, rows: Sequence[Row]) -> Collapse | None:
    first, last = rows[0], rows[-1]
    half = number(first, "gold_high") - number(first, "gold")

    def fell_since(row: Row) -> bool:
        apart = number(last, "gold_high") < number(row, "gold_low")
        return apart and number(row, "gold") - number(last, "gold") > half

    if number(last, "reward_low") <= number(first, "reward_high"):
        return None
    higher = [row for row in rows[:-1] if fell_since(row) and number(row, "reward") <= number(last, "reward")]
    return Collapse(name, max(higher, key=lambda row: number(row, "gold")), last) if higher else None


def signs(run: Run, began: float) -> list[tuple[str, str, float, float, float]]:
    """Each known sign: what it says, what it does in a collapse, and its value in the first step, in the last one up to
    `began`, and in the last one."""
    found = []
    for key, words, does in SIGNS:
        known = [(number(row, "step"), value) for row in run.train if math.isfinite(value := number(row, key))]
        if known:
            before = [value for step, value in known if step <= began] or [known[0][1]]
            found.append((words, does, known[0][1], before[-1], known[-1][1]))
    return found
