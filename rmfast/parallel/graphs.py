"""CUDA graphs of a pack's forward and backward: for small models, whose kernels run shorter than they take to launch.

A graph repeats the kernels that were started once, on the same memory. So packs must come in few shapes (`pad_pack`),
all that changes from pack to pack lies in tensors, and gradients add up in one buffer that is never given back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rmfast.data.loader import PINNING
from rmfast.data.pack import Pack
from rmfast.objectives.base import BatchTotals, Statistics, copied

WARM_UP = 3  # runs before recording, in which Triton compiles and libraries choose


@dataclass(frozen=True)
class TotalsOnDevice:
    """What sums over a global batch are divided by, as scalars that a graph reads."""

    groups: Tensor
    weight: Tensor
    lm_tokens: Tensor


class Recorder(Protocol):
    """Records what a function starts on a device."""

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record `run`; gives what repeats it. Whether `run` itself takes effect is left open."""
        ...


class CudaRecorder:
    """Records CUDA graphs that share their memory: one runs at a time. Meanwhile the loader's thread may use CUDA, but
    not pin memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with PINNING, torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


class FlatGradients:
    """Gradients of some parameters as views of one buffer [n], so that zeroing and reducing them is one call each."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        trained = [p for p in parameters if p.requires_grad]
        sizes = [p.numel() for p in trained]
        first = trained[0] if trained else torch.empty(0)
        self.buffer = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        for parameter, part in zip(trained, self.buffer.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)


class PackGraphs:
    """Runs packs by graphs, one for each shape; a shape's first pack records its graph.

    Args:
        compute: forward and backward of a pack on the device, adding to the gradients; gives its statistics.
        gradients: which recording leaves as they were, as it does the state that dropout draws from.
        recorder: of the device.
    """

    def __init__(
        self, compute: Callable[[Pack, BatchTotals], Statistics], gradients: FlatGradients, recorder: Recorder
    ) -> None:
        self.compute, self.gradients, self.recorder = compute, gradients, recorder
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    def __call__(self, pack: Pack, totals: BatchTotals) -> Statistics:
        """Statistics of a pack that lies on the CPU or the device; its gradients are added."""
        shape = tuple(tensor.shape for tensor in pack.tensors())
        if shape not in self._graphs:
            self._graphs[shape] = _Graph(self, pack)
        return self._graphs[shape].run(pack, totals)


class _Graph:
    def __init__(self, graphs: PackGraphs, pack: Pack) -> None:
        buffer = graphs.gradients.buffer
        self._pack = pack.map(lambda tensor: tensor.to(buffer.device, copy=True))
        self._totals = TotalsOnDevice(*torch.ones(3, device=buffer.device).unbind())
        self._statistics: Statistics | None = None

        def run() -> None:
            self._statistics = graphs.compute(self._pack, self._totals)

        before = buffer.clone()
        # Which step records a shape depends on where this process began: its dropout must not.
        with torch.random.fork_rng([buffer.device] if buffer.device.type == "cuda" else []):
            self._replay = graphs.recorder(run)
        buffer.copy_(before)

    def run(self, pack: Pack, totals: BatchTotals) -> Statistics:
        for kept, tensor in zip(self._pack.tensors(), pack.tensors(), strict=True):
            kept.copy_(tensor, non_blocking=True)
        self._totals.groups.fill_(totals.groups)
        self._totals.weight.fill_(totals.weight)
        self._totals.lm_tokens.fill_(totals.lm_tokens)
        self._replay()
        assert self._statistics is not None
        return copied(self._statistics)
