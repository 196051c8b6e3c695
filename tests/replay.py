"""A stand-in for CUDA graphs where there is no GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ReplayOnTheCpu:
    """What a CUDA graph does: the ops of the recorded run again, on the same memory, with the same Python values."""

    def __init__(self, warm_up: int = 0) -> None:
        self.recorded = self.replayed = 0
        self.warm_up = warm_up

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

        class Record(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                assert func is not torch.ops.aten._local_scalar_dense.default, "reads the device"
                out = func(*args, **(kwargs or {}))
                calls.append((func, args, kwargs or {}, out))
                return out

        for _ in range(self.warm_up):
            run()
        with Record():
            run()

        @torch.no_grad()
        def replay() -> None:
            self.replayed += 1
            for func, args, kwargs, out in calls:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(out), _tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay


def _tensors(out: Any) -> list[Tensor]:
    parts = out if isinstance(out, tuple | list) else [out]
    return [t for t in parts if isinstance(t, Tensor)]
