"""Which weights are on the device: those that something reads next. What is only read has a copy on the host."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


class Movable(Protocol):
    """An engine whose weights and moments can leave the device."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """All weights that it computes with, trained or not."""
        ...

    def moment_bytes(self) -> int:
        """Of the optimizer's moments, on this process."""
        ...

    def move_moments(self, device: torch.device) -> None:
        """Bring the optimizer's moments to a device."""
        ...


@dataclass(frozen=True, eq=False)
class ReadOnly:
    """A module that has no engine, for it is only read."""

    module: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        """See `Movable`."""
        return list(self.module.parameters())

    def moment_bytes(self) -> int:
        """See `Movable`."""
        return 0

    def move_moments(self, device: torch.device) -> None:
        """See `Movable`."""


class Residence:
    """Brings frozen weights to the device when they are needed, and lets go of others. Weights that are trained stay.

    Engines may share weights: what one of those needs that are asked for stays. A frozen weight is copied to the host
    once, for it never changes, so that letting go moves nothing.

    Args:
        engines: all that have weights on the device.
        moments: whether moments leave it too, while nothing is updated.
    """

    def __init__(self, engines: Sequence[Movable], device: torch.device, *, moments: bool) -> None:
        self.engines, self.device, self.moments = engines, device, moments
        frozen = {id(p): p for engine in engines for p in engine.parameters() if not p.requires_grad}
        self._frozen = [(p, self._on_host(p)) for p in frozen.values()]

    def _on_host(self, parameter: nn.Parameter) -> torch.Tensor:
        copy = parameter.detach().to("cpu")
        return copy.pin_memory() if self.device.type == "cuda" else copy

    def bring(self, needed: Sequence[Movable], *, updating: bool) -> None:
        """Have what some engines need on the device, and nothing else that can leave it.

        Args:
            updating: whether their optimizers take steps.
        """
        wanted = {id(parameter) for engine in needed for parameter in engine.parameters()}
        for parameter, host in self._frozen:
            if id(parameter) not in wanted:
                parameter.data = host
        if self.moments and not updating:
            self._move_moments(torch.device("cpu"))
        for parameter, host in self._frozen:
            if id(parameter) in wanted and parameter.device != self.device:
                parameter.data = host.to(self.device, non_blocking=True)
        if self.moments and updating:
            self._move_moments(self.device)

    def _move_moments(self, device: torch.device) -> None:
        for engine in self.engines:
            engine.move_moments(device)
