"""A stand-in for what megatron-core 0.16.1 asks of torch.cuda where there is no GPU: tests alone use it.

Its collectives and buffers ask for the current device, and its schedules make one tensor on "cuda", by that name.
What would wait for the device is refused. Inert where CUDA exists.
"""

from collections.abc import Callable
from typing import Any

import torch


class _CpuTorch:
    """torch, as one module sees it, whose zeros come from the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **options)


def _poisoned(release: Callable[..., None]) -> Callable[..., None]:
    """A pipeline's outputs are spoiled as they are freed, so that a message that still reads them tells."""

    def deallocate(out: torch.Tensor | None, deallocate_pipeline_outputs: bool = False) -> None:
        if out is not None and deallocate_pipeline_outputs:
            out.data.fill_(torch.nan)
        release(out, deallocate_pipeline_outputs)

    return deallocate


def waits(*_: object, **__: object) -> None:
    """In place of what makes the host wait for the device, which no step and no evaluation may call."""
    raise AssertionError("the host waits for the device")


def install(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let megatron-core find a CPU where it looks for a GPU.

    Args:
        put: sets an attribute; a monkeypatch's own takes it back afterwards.
    """
    if torch.cuda.is_available():
        return
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from rmfast.parallel.megatron import reduction

    put(torch.cuda, "current_device", lambda: torch.device("cpu"))
    put(torch.cuda, "synchronize", waits)
    put(P2PCommunicator, "_communicate_shapes", waits)
    put(schedules, "torch", _CpuTorch())
    put(schedules, "deallocate_output_tensor", _poisoned(schedules.deallocate_output_tensor))
    put(reduction, "BUCKET", 5000)  # elements, so that a tiny model has several buckets
