"""A step's figures, kept on the device until the step after it: reading them makes nothing wait."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rmfast.data.loader import Step
from rmfast.objectives.reward import SUMS, Statistics


class Fetched:
    """A tensor on its way to the CPU, behind what its device was told to do before."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._ready = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def wait(self) -> Tensor:
        """The tensor on the CPU, once it is there; what the device was told to do afterwards is not waited for."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._host


@dataclass
class _Pending:
    step: Step
    figures: Fetched
    names: tuple[str, ...]
    extras: dict[str, Any]


@dataclass
class StepLine:
    """One finished step: its metrics by name, and whether loss and gradient were finite."""

    step: Step
    values: dict[str, Any]
    finite: bool


class MetricQueue:
    """Takes each step's device figures and gives them back as numbers once they are there."""

    def __init__(self, *, lm: bool) -> None:
        self._pending: deque[_Pending] = deque()
        self._lm = lm

    def push(self, step: Step, statistics: Statistics, norm: Tensor, extras: dict[str, Any]) -> None:
        """Queue a step. extras: figures that the host knows already."""
        own = [figure.to(norm).reshape(1) for figure in statistics.figures.values()]
        figures = torch.cat((statistics.sums, statistics.extrema, norm.reshape(1), *own))
        self._pending.append(_Pending(step, Fetched(figures), tuple(statistics.figures), extras))

    def pop(self, leave: int = 0) -> list[StepLine]:
        """Finished steps, oldest first, but the newest `leave` ones; waits for those that it gives."""
        out = []
        while len(self._pending) > leave:
            out.append(self._line(self._pending.popleft()))
        return out

    def _line(self, pending: _Pending) -> StepLine:
        figures = pending.figures.wait().tolist()
        own = dict(zip(pending.names, figures[len(SUMS) + 3 :], strict=True))
        *sums, high, low, norm = figures[: len(SUMS) + 3]
        total = dict(zip(SUMS, sums, strict=True))
        totals = pending.step.totals
        finite = bool(torch.isfinite(torch.tensor([total["loss"], norm])).all())
        values = {
            "step": pending.step.number + 1,
            "epoch": round(pending.step.epoch, 6),
            "loss": total["loss"],
            "accuracy": total["correct"] / max(totals.edges, 1),
            "margin": total["margin"] / max(totals.edges, 1),
            "mean_reward": total["reward"] / max(totals.responses, 1),
            "min_reward": -low,
            "max_reward": high,
            "grad_norm": norm,
        }
        if self._lm:
            values |= {"ranking_loss": total["ranking_loss"], "lm_loss": total["lm_loss"]}
        return StepLine(pending.step, values | own | pending.extras, finite)
