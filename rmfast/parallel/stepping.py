"""What engines do alike: scores, MetaRM's ascent and the way back, and the optimizer's step, which is left out where
its loss or gradient is not finite."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmfast.data.pack import Pack
from rmfast.kernels.multi_tensor import perturb_, restore_, save
from rmfast.models.network import Outputs, Reads
from rmfast.parallel.optimizer import Optimizer, local


class Stepping(ABC):
    """A part of an engine. The optimizer's `parts` are the weights that this process updates."""

    optimizer: Optimizer

    def __init__(self) -> None:
        self._loss: Tensor | None = None  # of the last forward_backward, over all ranks
        self._moved: list[Tensor] = []  # weights between perturb and restore
        self._saved: list[Tensor] = []  # their copies
        self._sound: Tensor | None = None  # whether the gradient of the last perturb was finite

    @abstractmethod
    def _weights_changed(self) -> None:
        """Bring the new weights to whoever computes with them."""

    @abstractmethod
    def _stepped(self) -> None:
        """After the optimizer has changed this process's part of the weights."""

    @abstractmethod
    def _drop_gradients(self) -> None:
        """Forget the gradients of the last forward_backward."""

    @abstractmethod
    def _prototypes(self) -> Tensor | None:
        """This process's SwAV prototypes."""

    @abstractmethod
    def read(self, packs: Sequence[Pack], reads: Callable[[Pack], Reads]) -> list[Outputs]:
        """See `Engine`."""

    def score(self, packs: Sequence[Pack]) -> list[Tensor]:
        """See `Engine`."""
        return [outputs.scores for outputs in self.read(packs, lambda pack: Reads(scores=pack.scored))]

    def moment_bytes(self) -> int:
        """Of the optimizer's moments, on this process."""
        return sum(tensor.nbytes for kind in self.optimizer.state().values() for tensor in kind.values())

    def move_moments(self, device: torch.device) -> None:
        """Bring the optimizer's moments to a device; they must be where the weights are before its next step."""
        self.optimizer.move(device)

    @torch.no_grad()
    def perturb(self, *, eta: float, rho: float | None = None) -> Tensor:
        """See `Engine`. Every rank moves its part."""
        assert not self._moved and self._loss is not None
        norm = self.optimizer.gradient_norm()
        self._sound = norm.isfinite() & self._loss.isfinite()
        grads = self.optimizer.gradients()
        self._moved = [self.optimizer.parts[name] for name in grads]
        self._saved = save(self._moved)
        step = eta if rho is None else torch.where(norm > 0, rho / norm, 0.0)
        perturb_(self._moved, self._saved, list(grads.values()), eta=step)
        self._weights_changed()
        self._drop_gradients()
        return norm

    def restore(self) -> None:
        """See `Engine`."""
        restore_(self._moved, self._saved)
        self._moved, self._saved = [], []
        self._weights_changed()

    def optimizer_step(self, lr: float) -> Tensor:
        """See `Engine`."""
        assert not self._moved, "restore() comes before the step"
        # A loss may overflow where its gradient does not: such a step is left out as well.
        valid = None if self._loss is None else self._loss.isfinite()
        if self._sound is not None:
            valid = self._sound if valid is None else valid & self._sound
        norm = self.optimizer.step(lr, valid)
        if self._sound is not None:
            norm, self._sound = norm.where(self._sound, torch.nan), None
        self._drop_gradients()
        self._stepped()
        prototypes = self._prototypes()
        if prototypes is not None:
            self._normalise(local(prototypes))
        return norm

    @torch.no_grad()
    def _normalise(self, prototypes: Tensor) -> None:
        """Rows of length 1, as SwAV leaves them after each step; rows that have it stay to the bit."""
        length = prototypes.norm(dim=1, keepdim=True)
        prototypes.copy_(torch.where((length - 1).abs() > 1e-6, prototypes / length, prototypes))
