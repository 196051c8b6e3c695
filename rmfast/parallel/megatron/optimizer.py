"""AdamW on the ranges of the weights that megatron-core's distributed optimizer gives a data-parallel rank.

megatron-core lays weights and gradients into buffers, scatters the summed gradients and gathers the weights; which
range of a weight is whose is a map of its `DistributedOptimizer`. The arithmetic on a range is the native engine's:
no step waits for the device, and one that is not finite changes nothing.
"""

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor, nn

from rmfast.kernels.multi_tensor import gradient_norm
from rmfast.parallel.megatron.groups import Groups
from rmfast.parallel.optimizer import AdamWOptions, Optimizer


class RangeOptimizer(Optimizer):
    """See `Optimizer`; its parts are ranges of flattened parameters.

    Args:
        chunks: this rank's stages.
        parameters: all of theirs, by name.
    """

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        parameters: dict[str, nn.Parameter],
        options: AdamWOptions,
        groups: Groups,
    ) -> None:
        self.groups = groups
        self.ranges: dict[nn.Parameter, tuple[int, int]] = {}
        for buffer in (buffer for chunk in chunks for buffer in chunk.buffers):
            for buckets in DistributedOptimizer._build_gbuf_range_map(buffer).values():
                for bucket in buckets:
                    for parameter, ranges in bucket["param_map"].items():
                        self.ranges[parameter] = (ranges["param"].start, ranges["param"].end)
        super().__init__(parameters.items(), options, groups.world, sharded=True)

    def _own_parts(self) -> dict[str, Tensor]:
        return {n: self._range(p.detach(), p) for n, p in self.parameters.items() if p in self.ranges}

    def _range(self, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
        begin, end = self.ranges[parameter]
        return tensor.view(-1)[begin:end]

    def gradients(self) -> dict[str, Tensor]:
        """Name -> this process's range of each gradient."""
        return {name: self._range(vars(p)["main_grad"], p) for name, p in self.parameters.items() if name in self.parts}

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, over all ranks: an fp32 scalar on the device. Every weight counts once."""
        counted = [g for name, g in self.gradients().items() if self._counts(self.parameters[name])]
        norm = gradient_norm(counted, impl=self.backend).to(self.world.device)
        return self.world.sum_(norm.double().square()).sqrt().float()

    def _counts(self, parameter: nn.Parameter) -> bool:
        """Whether this rank holds what no other rank counts."""
        whole = not hasattr(parameter, "tensor_model_parallel")
        return not (whole and self.groups.tensor.rank) and not hasattr(parameter, "copy_of_embedding")

    @torch.no_grad()
    def zero_grad(self) -> None:
        """Clear the gradients, which live in megatron-core's buffers."""
        for parameter in self.parameters.values():
            vars(parameter)["main_grad"].zero_()
