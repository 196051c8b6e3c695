"""The phases of a step of PPO: what is on the device in each, and the memory that it takes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from rmfast.trainer.memory import begin_part, part_bytes

Phase = Literal["beginning", "sampling", "scoring", "reading", "updating", "evaluating"]
EVERY = ("sampling", "scoring", "reading", "updating")
"""Those of every step."""


class Phases:
    """Context managers around the phases of a step.

    Args:
        bring: is called before a phase, to have on the device what it needs; None where all stays there.
    """

    def __init__(self, device: torch.device, bring: Callable[[Phase], None] | None = None) -> None:
        self.device, self.bring = device, bring
        self._bytes: dict[str, int] = {}

    @contextlib.contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Within it what the phase needs is on the device."""
        if self.bring is not None:
            self.bring(phase)
        begin_part(self.device)
        yield
        self._bytes[phase] = part_bytes(self.device)

    def figures(self) -> dict[str, float]:
        """Memory of each phase since they were asked for last, in GiB."""
        found, self._bytes = self._bytes, {}
        return {f"memory_{phase}_gib": size / 2**30 for phase, size in found.items() if phase in EVERY}
