"""AdamW on this process's part of the weights: clipping and the guard against NaN stay on the device."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rmfast.parallel.world import World


@dataclass(frozen=True, kw_only=True)
class AdamWOptions:
    """Options of AdamW; `clip` is the largest gradient norm, 0 for none."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0


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
    """

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], options: AdamWOptions, world: World, *, sharded: bool
    ) -> None:
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        self.options, self.world, self.sharded = options, world, sharded
        # Parts are plain tensors on the parameters' storage, so that the fused kernel sees nothing else.
        self.parts = {name: local(p).detach() for name, p in self.parameters.items() if local(p).numel()}
        matrices = [part for name, part in self.parts.items() if self.parameters[name].dim() > 1]
        vectors = [part for name, part in self.parts.items() if self.parameters[name].dim() <= 1]
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((matrices, options.weight_decay), (vectors, 0.0))
            if params
        ]
        self.adamw = None
        if groups:  # a rank may own no part of a small model
            self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=options.betas, eps=options.eps, fused=True)
            self._make_state()

    def _make_state(self) -> None:
        # torch makes the state in the first step; ours is there from the start, so that it can be saved and loaded.
        assert self.adamw is not None
        for part in self.parts.values():
            self.adamw.state[part] = {
                "step": torch.zeros((), dtype=torch.float32, device=part.device),
                "exp_avg": torch.zeros_like(part),
                "exp_avg_sq": torch.zeros_like(part),
            }

    def step(self, lr: float, valid: Tensor | None = None) -> Tensor:
        """Clip and apply the gradients, then drop them.

        Args:
            valid: bool, a scalar on the device; where it is false the step is left out too.

        Returns:
            Gradient norm over all ranks before clipping, a scalar on the device; where it is not finite the step was
            left out.
        """
        norm = self.gradient_norm()
        if self.adamw is not None:
            for group in self.adamw.param_groups:
                group["lr"] = lr
            for name, part in self.parts.items():
                grad = self.parameters[name].grad
                part.grad = None if grad is None else local(grad)
            # The fused kernel divides gradients by grad_scale, and leaves all as it is where found_inf is 1.
            clip = self.options.clip
            scale = ((norm + 1e-6) / clip).clamp(min=1.0) if clip else torch.ones_like(norm)
            self.adamw.grad_scale = scale  # type: ignore[attr-defined]
            good = norm.isfinite() if valid is None else norm.isfinite() & valid
            self.adamw.found_inf = (~good).float()  # type: ignore[attr-defined]
            self.adamw.step()
            for part in self.parts.values():
                part.grad = None
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, over all ranks: an fp32 scalar on the device."""
        grads = [local(p.grad) for p in self.parameters.values() if p.grad is not None]
        grads = [grad for grad in grads if grad.numel()]  # a rank may own no part of a small weight
        norms = torch._foreach_norm(grads, dtype=torch.float32) if grads else []
        square = torch.stack(list(norms)).square().sum() if norms else torch.zeros((), device=self.world.device)
        return (self.world.sum_(square) if self.sharded else square).sqrt()

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Name of each part -> its `step`, `exp_avg` and `exp_avg_sq`, the tensors themselves."""
        if self.adamw is None:
            return {}
        return {name: self.adamw.state[part] for name, part in self.parts.items()}
