"""What every op shares: the choice of an implementation, checks, and the precision of the maths."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "reference")


HAS_TRITON = find_spec("triton") is not None
# Triton reads the variable when it meets a kernel's definition, so it is set before rmfast is imported or not at all.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's kernels run in its interpreter, on CPU tensors: for tests, very slow."""


def use_triton(op: str, impl: str, tensor: Tensor, *, refusal: str | None = None, worth: bool = True) -> bool:
    """Whether an op runs its Triton kernels or its plain-torch reference.

    "auto" takes the kernels for CUDA tensors, and the reference elsewhere (the interpreter must be asked for).

    Args:
        op: name, for errors.
        impl: one of `IMPLEMENTATIONS`.
        tensor: on the device that computes.
        refusal: why the kernels cannot take these inputs, if they cannot: "auto" then takes the reference.
        worth: False where the kernels could but the reference is faster ("auto" then takes it).

    Raises:
        ValueError: `impl` is none of `IMPLEMENTATIONS`, or "triton" where the kernels cannot run.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "reference":
        return False
    missing = refusal
    if not HAS_TRITON:
        missing = "the package triton is not installed"
    elif tensor.device.type != "cuda" and not (tensor.device.type == "cpu" and INTERPRETED):
        missing = f"Triton needs CUDA tensors (or TRITON_INTERPRET=1 on the CPU), got {tensor.device.type}"
    if impl == "triton":
        check(missing is None, op, f"impl='triton' is not possible: {missing}")
        return True
    return missing is None and worth and tensor.device.type == "cuda"


def describe(device: torch.device, impl: str = "auto") -> str:
    """What `impl` means on a device, in words, for a run's log."""
    if impl == "triton" or (impl == "auto" and device.type == "cuda" and HAS_TRITON):
        return "Triton kernels"
    return "plain torch" + (" (Triton is not installed)" if device.type == "cuda" and not HAS_TRITON else "")


def check(condition: bool, op: str, message: str) -> None:
    """Raise `ValueError("op: message")` unless the condition holds."""
    if not condition:
        raise ValueError(f"{op}: {message}")


def maths_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 for fp64 inputs, fp32 for everything else."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
