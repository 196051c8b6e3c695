"""AdamW on this process's part of the weights: clipping and the guard against NaN stay on the device."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rmfast.errors import UserError
from rmfast.kernels.multi_tensor import adamw_, first_backend, gradient_norm, refusal
from rmfast.parallel.world import World


@dataclass(frozen=True, kw_only=True)
class AdamWOptions:
    """Options of AdamW.

    Args:
        clip: the largest gradient norm, 0 for none.
        backend: what computes steps and norms: "auto", "csrc", "torch" or "apex"; see `adamw_`.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    backend: str = "auto"


def optimizer_backend(asked: str, device: torch.device, weights: Sequence[Tensor] = ()) -> str:
    """What computes the steps of weights on a device: what is asked for, or what "auto" stands for.

    Raises:
        UserError: it cannot be had, or not take these weights.
    """
    if asked == "auto":
        return first_backend(device, weights, weights)
    reason = refusal(asked, device, weights, weights)
    if reason is not None:
        raise UserError(f"optim.backend: {asked} is not possible: {reason}")
    return asked


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimizer:
    """AdamW over the trainable parameters of a module.

    Weight decay acts on matrices only, as in transformers. A step whose gradient norm is not finite changes nothing;
    no step waits for the device.

    Args:
        parameters: names and parameters, whole or sharded by FSDP2; those without gradients are left out.
        sharded: whether gradient norms add up over ranks.

    Raises:
        UserError: `options.backend` cannot take the weights.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], options: AdamWOptions, world: World, *, sharded: bool
    ) -> None:
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        self.options, self.world, self.sharded = options, world, sharded
        self.parts = self._own_parts()
        self.backend = optimizer_backend(options.backend, world.device, list(self.parts.values()))
        self.exp_avg = {name: torch.zeros_like(part) for name, part in self.parts.items()}
        self.exp_avg_sq = {name: torch.zeros_like(part) for name, part in self.parts.items()}
        self.steps = torch.zeros((), dtype=torch.float32, device=world.device)  # taken; those left out do not count

    def _own_parts(self) -> dict[str, Tensor]:
        """What this process updates of each parameter: plain tensors on its storage, so that ops see nothing else."""
        return {name: local(p).detach() for name, p in self.parameters.items() if local(p).numel()}

    def step(self, lr: float, valid: Tensor | None = None) -> Tensor:
        """Clip and apply the gradients.

        Args:
            valid: bool, a scalar on the device; where it is false the step is left out too.

        Returns:
            Gradient norm over all ranks before clipping, a scalar on the device; where it is not finite the step was
            left out.
        """
        norm = self.gradient_norm()
        good = norm.isfinite() if valid is None else norm.isfinite() & valid
        clip = self.options.clip
        grads = self.gradients()
        self.steps += good
        adamw_(
            [self.parts[name] for name in grads],
            list(grads.values()),
            [self.exp_avg[name] for name in grads],
            [self.exp_avg_sq[name] for name in grads],
            step=self.steps,
            lr=lr,
            betas=self.options.betas,
            eps=self.options.eps,
            weight_decay=[self.options.weight_decay * (self.parameters[name].dim() > 1) for name in grads],
            grad_scale=((norm + 1e-6) / clip).clamp(min=1.0) if clip else None,
            skip=~good,
            impl=self.backend,
        )
        return norm

    def gradients(self) -> dict[str, Tensor]:
        """Name -> this process's part of each gradient that is there; their order is the parameters'."""
        return {name: local(p.grad) for name, p in self.parameters.items() if p.grad is not None and name in self.parts}

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, over all ranks: an fp32 scalar on the device."""
        grads = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        grads = [grad for grad in grads if grad.numel()]  # a rank may hold no part of a small weight
        norm = gradient_norm(grads, impl=self.backend).to(self.world.device)
        return self.world.sum_(norm.double().square()).sqrt().float() if self.sharded else norm

    def move(self, device: torch.device) -> None:
        """Bring the moments to a device."""
        for moments in (self.exp_avg, self.exp_avg_sq):
            for name, tensor in moments.items():
                moments[name] = tensor.to(device)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """ "exp_avg" and "exp_avg_sq" -> name of each part -> the moments, the tensors themselves."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
