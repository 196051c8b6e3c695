"""What rows are: what is asked of a row, and of the prompt group that it becomes. A new kind is a constant here."""

from dataclasses import dataclass
from typing import Literal

Turns = Literal["all", "last"]
"""Which of the assistant's turns in a conversation are trained on."""


@dataclass(frozen=True)
class RowKind:
    """A kind of rows.

    Args:
        name: of the rows, in the plural.
        prefers: a row and a group that prefer no response to another cannot be used.
        empty: responses may be without text; strengths, which scores become, are not read.
        distinct: groups have no edges, but this many different responses, the first ones. Rows with fewer responses, or
            with none that differs from the others, cannot be used; responses that repeat one are merged. None for all
            responses as they are.
        answered: rows have responses; without, a row is its prompt alone, whatever answers stand beside it.
        turns: rows are demonstrations, one response each, of which some tokens are targets; None for other rows.
    """

    name: str
    prefers: bool = False
    empty: bool = False
    distinct: int | None = None
    answered: bool = True
    turns: Turns | None = None

    @property
    def key(self) -> str:
        """What tells caches of the same rows apart."""
        if self.turns is not None:
            return f" {self.name}, {self.turns} turns"
        if not self.answered:
            return f" {self.name}"
        return "" if self.distinct is None else f" {self.distinct} samples"


PAIRS = RowKind("pairs", prefers=True)
"""Responses of which some are preferred to others: pairs, rankings, best-of-N."""
JUDGED = RowKind("judged pairs", prefers=True, empty=True)
"""Pairs that a model is evaluated on."""
RESPONSES = RowKind("responses", empty=True)
"""Responses to score, whatever else the row says."""
PROMPTS = RowKind("prompts", answered=False)
"""Prompts to sample from: groups without responses and edges."""


def samples(count: int) -> RowKind:
    """MetaRM's: so many different responses of a prompt."""
    return RowKind("samples", distinct=count)


def demonstrations(turns: Turns = "all") -> RowKind:
    """Answers to learn token by token, those of the assistant's turns that are asked for."""
    return RowKind("demonstrations", turns=turns)
