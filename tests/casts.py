"""Counts casts of weights."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts how often each weight is copied into another dtype."""

    def __init__(self, weights: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in weights}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten._foreach_copy_.default) or "perturb_" in str(func):
            parts = [x for a in args for x in (a if isinstance(a, list | tuple) else [a]) if isinstance(x, Tensor)]
            self.counts.update(self.names[x.data_ptr()] for x in parts if x.data_ptr() in self.names)
        return func(*args, **(kwargs or {}))
