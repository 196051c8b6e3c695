"""The prompts of a run's steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rmfast.data.example import Example
from rmfast.data.plan import StepPlan
from rmfast.data.table import GroupTable
from rmfast.rollout.draft import Request


@dataclass(frozen=True)
class Prompts:
    """Prompts of a table, and which of them each step asks.

    Args:
        examples: the table's prompts as their rows have them; none where no reward model reads texts.
    """

    table: GroupTable
    plan: StepPlan
    examples: Sequence[Example] = ()

    def rows(self, step: int) -> np.ndarray:
        """int64: rows of the table of a step, 0 for the first one."""
        return self.plan.step(step)[1]

    def requests(self, rows: np.ndarray, first: int) -> list[Request]:
        """Rows to be sampled, the number of whose draws is their place among all that the run has drawn: a prompt that
        it meets again gets other samples.

        Args:
            first: the number of the first.
        """
        return [Request(self.ids(row), first + place) for place, row in enumerate(rows.tolist())]

    def texts(self, rows: np.ndarray) -> list[Example]:
        """Rows of the table as texts or messages, where they are known."""
        return [self.examples[row] for row in rows.tolist()] if self.examples else []

    def ids(self, row: int) -> np.ndarray:
        """int32: the tokens of a prompt."""
        return np.asarray(self.table.sequences_of(row)[0], np.int32)
