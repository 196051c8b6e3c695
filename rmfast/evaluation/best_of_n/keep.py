"""What is kept of a prompt's responses: all with their rewards, the best as a demonstration, or a preference pair."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rmfast.data.beside import text_of
from rmfast.data.columns import IGNORE
from rmfast.data.example import Example, Message, Response
from rmfast.evaluation.best_of_n.rewards import combined_rewards
from rmfast.evaluation.combine import Rule
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.scoring.rows import WRITTEN, ReadRow, written_rows

Keep = Literal["all", "best", "best-worst"]
KEEPS: tuple[Keep, ...] = get_args(Keep)

NOT_SCORED = "rows that could not be scored"
NOT_FINITE = "responses with a reward that is not finite"
NO_TEXT = "responses without text"
NONE_LEFT = "rows without a response to keep"
EQUAL = "rows in which all rewards are equal"
SAME_TEXT = "rows in which the best and the worst response are the same"

CARRIED = (IGNORE, "tools", "chat_template_kwargs")
"""What a column was used as that goes with a response that is kept, beside the prompt."""


@dataclass(frozen=True)
class Kept:
    """Rows to write, and how many rows and responses were passed over, by why."""

    rows: list[dict[str, Any]]
    passed_over: dict[str, int]


def keep_rows(
    rows: Sequence[ReadRow],
    rewards: Sequence[Floats],
    keep: Keep,
    *,
    rule: Rule = "mean",
    k: float = 1.0,
    standardised: bool = False,
) -> Kept:
    """What is kept of rows of a prompt and its responses.

    - "all": the rows with `rewards`, as `rmfast score` writes them.
    - "best": `{"prompt", "completion", "reward"}`, a demonstration in TRL's format; of equal ones the first.
    - "best-worst": `{"prompt", "chosen", "rejected", "reward_chosen", "reward_rejected"}`, a preference pair; none
      where all rewards are equal, or the two texts.

    A response without text or with a reward that is not finite is neither kept nor compared. Columns of the row that
    say nothing of prompt and responses go along.

    Args:
        rewards: [members, N] of each row that has an example.
        rule, k, standardised: how members are combined, see `combined_rewards`.
    """
    passed_over: Counter[str] = Counter({NOT_SCORED: sum(row.example is None for row in rows)})
    passed_over[NOT_FINITE] = sum(int((~np.isfinite(of_row).all(0)).sum()) for of_row in rewards)
    if keep == "all":
        return Kept(written_rows(rows, rewards), dict(+passed_over))
    scored = [(row.example, row.columns or {}) for row in rows if row.example is not None]
    combined = combined_rewards(rewards, rule, k=k, standardised=standardised)
    out = []
    for (example, columns), reward in zip(scored, combined, strict=True):
        silent = np.array([not _text(response) for response in example.responses])
        passed_over[NO_TEXT] += int(silent.sum())
        what = _choice(example, np.where(silent, np.nan, reward), keep)
        if isinstance(what, str):
            passed_over[what] += 1
        else:
            out.append({"prompt": example.prompt} | what | _carried(example, columns, what))
    return Kept(out, dict(+passed_over))


def _choice(example: Example, reward: Floats, keep: Keep) -> dict[str, Any] | str:
    """The response or the pair that is kept, with its rewards; or why there is none.

    Args:
        reward: [N], nan of responses that are neither kept nor compared.
    """
    if not np.isfinite(reward).any():
        return NONE_LEFT
    best, worst = int(np.nanargmax(reward)), int(np.nanargmin(reward))
    if keep == "best":
        return {"completion": _answer(example, best), "reward": float(reward[best])}
    if reward[best] == reward[worst]:
        return EQUAL
    if _text(example.responses[best]) == _text(example.responses[worst]):
        return SAME_TEXT
    answers = {"chosen": _answer(example, best), "rejected": _answer(example, worst)}
    return answers | {"reward_chosen": float(reward[best]), "reward_rejected": float(reward[worst])}


def _answer(example: Example, place: int) -> Response:
    """A response as it follows the prompt: text after text, an assistant turn after messages."""
    response = example.responses[place]
    if isinstance(example.prompt, list) and isinstance(response, str):
        turn: Message = {"role": "assistant", "content": response}
        return [turn]
    return response


def _text(response: Response) -> str:
    """What a response says, without white space at its ends."""
    return (text_of(response) or "").strip()


def _carried(example: Example, columns: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    """The row's columns that go along."""
    used = dict(example.columns)
    return {
        name: value
        for name, value in columns.items()
        if used.get(name) in CARRIED and name not in (*WRITTEN, *what, "prompt")
    }
