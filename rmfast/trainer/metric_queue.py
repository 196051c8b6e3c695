"""A step's figures, kept on the device until the step after it: reading them makes nothing wait. Which figures there
are, the objective (`metrics`), the learner (`update`) and the loop (time, memory) say."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from rmfast.trainer.learner import Figures, Line


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


class MetricQueue:
    """Takes each step's device figures and gives its line once they are there."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Fetched, Figures, dict[str, Any]]] = deque()

    def push(self, figures: Figures, known: dict[str, Any]) -> None:
        """Queue a step. known: what the line holds beside the step's figures."""
        tensors = list(figures.device.values())
        device = tensors[-1].device
        flat = torch.cat([tensor.to(device).reshape(-1) for tensor in tensors])
        self._pending.append((Fetched(flat), figures, known))

    def pop(self, leave: int = 0) -> list[Line]:
        """Lines of finished steps, oldest first, but the newest `leave` ones; waits for those that it gives."""
        out = []
        while len(self._pending) > leave:
            out.append(self._line(*self._pending.popleft()))
        return out

    def _line(self, fetched: Fetched, figures: Figures, known: dict[str, Any]) -> Line:
        parts = fetched.wait().split([tensor.numel() for tensor in figures.device.values()])
        named = zip(figures.device.items(), parts, strict=True)
        line = figures.line({name: part.reshape(tensor.shape).tolist() for (name, tensor), part in named})
        return Line(known | line.values, line.error)
