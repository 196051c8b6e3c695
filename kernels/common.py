"""What every op shares: the choice of an implementation, checks, and the precision of the maths."""

import functools
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "reference")

_log = logging.getLogger("rmfast.kernels")
_P = ParamSpec("_P")
_R = TypeVar("_R")

HAS_TRITON = find_spec("triton") is not None
# Triton reads the variable when it meets a kernel's definition, so it is set before rmfast is imported or not at all.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton's kernels run in its interpreter, on CPU tensors: for tests, very slow."""


def use_triton(op: str, impl: str, tensor: Tensor, *, refusal: str | None = None, worth: bool = True) -> bool:
    """Whether an op runs its Triton kernels or its plain-torch reference.

    "auto" takes the kernels for CUDA tensors, and the reference elsewhere (the interpreter must be asked for). Where it
    takes the reference on CUDA because of a `refusal`, the log says so, once for each op and reason.

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
    on_gpu = tensor.device.type == "cuda"
    if on_gpu and HAS_TRITON and refusal is not None and not torch.compiler.is_compiling():
        _warn_of_fallback(op, refusal)
    return missing is None and worth and on_gpu


@functools.cache
def _warn_of_fallback(op: str, reason: str) -> None:
    _log.warning("%s: plain torch instead of Triton kernels: %s", op, reason)


def without_autocast(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function as if autocast were off on its tensors' device: an op chooses the dtypes of its own products.

    The backward of a plain-torch reference is torch's own and runs later; torch asks to leave autocast before it.
    """

    @functools.wraps(function)
    def wide(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = "cpu"
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                device = value.device.type
                break
        if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wide


def describe(device: torch.device, impl: str = "auto") -> str:
    """What `impl` means on a device, in words, for a run's log; `use_triton` logs the ops that differ."""
    if impl == "triton" or (impl == "auto" and device.type == "cuda" and HAS_TRITON):
        import triton

        return f"Triton {triton.__version__}"
    return "plain torch" + (" (Triton is not installed)" if device.type == "cuda" and not HAS_TRITON else "")


def check(condition: bool, op: str, message: str | Callable[[], str]) -> None:
    """Raise `ValueError("op: message")` unless the condition holds. A function makes the message where it is needed: to
    write shapes and dtypes out takes longer than to compare them."""
    if not condition:
        raise ValueError(f"{op}: {message if isinstance(message, str) else message()}")


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on a device. From the CPU to a GPU through pinned memory: from any other the host would wait for the stream."""
    if x.device.type == "cpu" and device.type == "cuda" and not torch.compiler.is_compiling():
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def is_index(*tensors: Tensor) -> bool:
    """Whether all are int32 or int64, which index alike everywhere (bool and uint8 would be masks)."""
    return all(t.dtype in (torch.int32, torch.int64) for t in tensors)


def maths_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 for fp64 inputs, fp32 for everything else."""
    for tensor in tensors:
        if tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32
