"""What every op shares: the choice of an implementation and the precision of its maths."""

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "reference")


def check_impl(op: str, impl: str) -> None:
    """Refuse an `impl` that this build does not have.

    Raises:
        ValueError: `impl` is none of `IMPLEMENTATIONS`.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")


def check(condition: bool, op: str, message: str) -> None:
    """Raise `ValueError("op: message")` unless the condition holds."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def maths_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 for fp64 inputs, fp32 for everything else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
