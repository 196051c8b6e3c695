"""An LLM judge's verdicts on policies' answers, where the config names one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.config import Config
from rmfast.console import say
from rmfast.data.example import Edge, Example
from rmfast.errors import RunError, UserError
from rmfast.evaluation.judge.backend import Backend, Sampling
from rmfast.evaluation.judge.connect import connect
from rmfast.evaluation.judge.plan import JudgeOptions
from rmfast.evaluation.judge.run import judge_items
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.suites.base import Item

LOG = "judge.jsonl"
"""Its answers, in the run folder: none is asked for twice."""
LONGEST = 1024  # tokens of a verdict with its reasons
Rows = Sequence[Mapping[str, Any]]


def judge_of(config: Config) -> Backend | None:
    """The judge of a config; None without one.

    Raises:
        UserError: its address is none, or the package openai is not installed.
    """
    iterate = config.iterate
    if iterate.judge_url is None or iterate.judge_model is None:
        return None
    return connect("iterate.judge_url", iterate.judge_url, iterate.judge_model, Sampling(max_tokens=LONGEST))


def ask(
    judge: Backend, rows: Mapping[str, Rows], pairs: Sequence[tuple[str, str]], log: Path, alive: Callable[[], object]
) -> dict[tuple[str, str], Floats]:
    """Votes [P] on the first answers of pairs of policies, asked for in both orders, of which two that differ are a
    tie. Where the judge cannot be asked a line says so, and there are none: the next report asks again.

    Args:
        rows: the policies' records. alive: called now and then.
    """

    def tell(line: str) -> None:
        alive()
        say(line)

    items = [_item(one, other, rows, number) for one, other in pairs for number in range(len(rows[one]))]
    try:
        found = judge_items(items, judge, JudgeOptions(), log, tell)
    except (UserError, RunError) as error:
        say(f"{error}; this report has no verdicts of the judge, and the next one asks again")
        return {}
    votes = np.array([np.sign(result.gaps[0]) for result in found.results]).reshape(len(pairs), -1)
    return dict(zip(pairs, votes, strict=True))


def _item(one: str, other: str, rows: Mapping[str, Rows], number: int) -> Item:
    """Whether the first answer of one policy is better than that of the other."""
    row, label = rows[one][number], f"prompt {number}, {one} against {other}"
    answers = (row["responses"][0], rows[other][number]["responses"][0])
    example = Example(row["prompt"], answers, (Edge(0, 1),), tools=row.get("tools"))
    return Item(label, label, "pairwise", (), example)
