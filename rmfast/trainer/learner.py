"""What a method of training is to a run: a Learner, and what it gives of a step and of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from rmfast.parallel.engine import ReadRows, Shard


@dataclass(frozen=True)
class Line:
    """A finished step as it is logged. `error` says what was not finite, in which rows, and what to try, in words that
    may go on; the step then changed nothing, and `values` has no number that it touched."""

    values: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a step leaves to be logged.

    Args:
        device: tensors by name, read a step later, so that nothing waits for them.
        line: makes the step's line of their values: numbers, or lists of numbers.
        amounts: what is logged as so much a second; None where it is not known.
    """

    device: Mapping[str, Tensor]
    line: Callable[[dict[str, Any]], Line]
    amounts: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found on one held-out source or suite.

    Args:
        name: in the log. prefix: of its metrics beside those of a step.
        text: for the console, in place of the usual line.
        keep: writes what is to be kept of it into a folder.
    """

    name: str
    metrics: dict[str, Any]
    prefix: str
    text: str | None = None
    keep: Callable[[Path], None] | None = None


class Learner(Protocol):
    """A method of training: takes steps, evaluates, and has a state. Learners are composed, never subclassed."""

    total: int
    """Steps of the run."""
    counters: dict[str, int]
    """What is counted from the run's first step on, whatever interrupted it."""

    def step(self, number: int) -> Figures:
        """Take a step, 0 for the first one. All ranks call it."""
        ...

    def evaluate(self, step: int, final: bool) -> Sequence[Evaluation]:
        """Evaluate what is due after so many steps. All ranks call it."""
        ...

    def state(self) -> dict[str, Shard]:
        """This process's part of all that a resumed run needs."""
        ...

    def load_state(self, read: ReadRows) -> None:
        """Take back what `state` gave, at this or another number of ranks."""
        ...
