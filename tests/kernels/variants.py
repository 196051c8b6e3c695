"""What the ops would start on a device without having one: every kernel with all that its compiler needs."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime import JITFunction

import rmfast.kernels
from benchmarks.kernels.cases import OPS, At, Problem
from benchmarks.kernels.timing import leaves_of, outputs_of
from rmfast.kernels import common
from rmfast.kernels.launch import OPTIONS, Launch, recording

DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Variant:
    """A kernel with everything that the compiler needs; `name` tells it from all others of its architecture."""

    name: str
    op: str
    arch: int
    kernel: Any
    signature: dict[str, Any]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]


def specialise(value: Any, by_value: bool) -> tuple[str, bool]:
    """Triton's type of a run-time argument and whether it is known to be divisible by 16, as the JIT decides it.

    Pointers are taken as aligned: those of whole tensors are. None becomes a constant, and so does 1 where a kernel
    specialises `by_value`; sizes that it lists as `do_not_specialize` tell it nothing.
    """
    if isinstance(value, Tensor):
        return f"*{DTYPES[value.dtype]}", True
    if value is None or (by_value and type(value) is int and value == 1):
        return "constexpr", False
    if isinstance(value, bool):
        return "u1", False
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64", by_value and value % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    raise TypeError(f"an argument of type {type(value).__name__} cannot be compiled ahead of time")


def variant(op: str, arch: int, started: Launch) -> Variant:
    """What the JIT would compile for a start on a device of that architecture."""
    kernel = started.kernel
    given = dict(zip(kernel.arg_names, started.arguments, strict=False)) | started.options
    options = {name: value for name, value in started.options.items() if name not in kernel.arg_names}
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    shown: list[str] = []
    for i, parameter in enumerate(kernel.params):
        name = parameter.name
        value = given.get(name, parameter.default)
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name], divisible = specialise(value, not parameter.do_not_specialize)
        if signature[name] == "constexpr":
            constants[name] = value
        elif divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
        integer = "/16" if divisible and not isinstance(value, Tensor) else ""
        shown.append(str(value) if name in constants else signature[name] + integer)
    runs = [(token, len(list(same))) for token, same in groupby(shown)]
    types = " ".join(token if count == 1 else f"{count}{token}" for token, count in runs)
    constexprs = [p.name for p in kernel.params if p.is_constexpr]
    chosen = sorted((name, value) for name, value in options.items() if name not in OPTIONS)
    parts = [f"{name}={constants[name]}" for name in constexprs] + [f"{name}={value}" for name, value in chosen]
    label = f"{kernel.__name__}({types}) {' '.join(parts)}"
    return Variant(label, op, arch, kernel, signature, constants, attributes, options)


def kernels_of_package() -> Iterator[tuple[str, str]]:
    """(kernel, module) of every Triton kernel that rmfast.kernels holds: jit functions named ..._kernel."""
    for info in pkgutil.walk_packages(rmfast.kernels.__path__, "rmfast.kernels."):
        for name, value in vars(importlib.import_module(info.name)).items():
            if name.endswith("_kernel") and isinstance(value, JITFunction) and value.fn.__module__ == info.name:
                yield name, info.name


KERNELS = dict(kernels_of_package())  # all modules are imported before `starts` takes the CPU for the interpreter


def starts(problem: Problem, arch: int, *, alone: bool = False) -> list[Launch]:
    """What a problem on CPU tensors would start on a device of that architecture, forward and backward; `alone`: with a
    gradient of the first output alone too."""
    with recording((arch // 10, arch % 10)) as started, mock.patch.object(common, "INTERPRETED", True):
        outputs = outputs_of(problem.call(*problem.inputs, impl="triton"))
        for given in (outputs, outputs[:1])[: 1 + alone] if outputs else ():
            heads = [torch.ones_like(output) for output in given]
            torch.autograd.grad(given, leaves_of(problem.inputs), heads, allow_unused=True, retain_graph=True)
    return started


def collect(arch: int, ops: list[str]) -> Iterator[Variant]:
    """Distinct variants that the forms of some ops start."""
    seen: set[str] = set()
    for op in ops:
        for dtype, size in OPS[op].forms:
            problem = OPS[op].make(At(torch.device("cpu"), dtype), **size)
            for one in starts(problem, arch, alone=OPS[op].alone):
                found = variant(op, arch, one)
                if found.name not in seen:
                    seen.add(found.name)
                    yield found
