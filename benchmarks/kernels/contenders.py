"""One way of doing an op's job, ready to be timed: in this process, or in one that runs another revision."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.kernels.timing import Sample, forward_backward, forward_only, measure, outputs_of

ROOT = Path(__file__).resolve().parents[2]
FORWARD, BOTH = "forward", "forward+backward"
SEED = 0


class Contender(Protocol):
    """Times calls of a pass, FORWARD or BOTH."""

    def time(self, which: str, calls: int) -> Sample: ...


class Local:
    """A function of a problem's inputs, in this process."""

    def __init__(self, call: Callable[..., Any], inputs: list[Any], device: torch.device) -> None:
        self._call, self._inputs, self._device = call, inputs, device
        self._passes: dict[str, Callable[[], Any]] = {}

    def time(self, which: str, calls: int) -> Sample:
        if which not in self._passes:
            make = forward_only if which == FORWARD else forward_backward
            self._passes[which] = make(self._call, self._inputs)
        return measure(self._passes[which], self._device, calls=calls)


class Revision:
    """A process in which rmfast comes from another work tree, and everything else from here."""

    def __init__(self, tree: Path, device: torch.device) -> None:
        command = [sys.executable, "-m", "benchmarks.kernels.base", str(tree), str(device)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises RuntimeError with the other process's error."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the other revision ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


class Remote:
    """rmfast's own op in another revision."""

    def __init__(self, revision: Revision, op: str, size: str) -> None:
        self._ask = partial(revision.ask)
        self._problem = {"op": op, "size": size}

    def time(self, which: str, calls: int) -> Sample:
        answer = self._ask(self._problem | {"pass": which, "calls": calls})
        return Sample(answer["milliseconds"], answer["peak_bytes"])


def disagreement(
    call: Callable[..., Any], truth: Callable[..., Any], inputs: list[Any], *, backward: bool
) -> str | None:
    """How far a contender is from plain torch, if it is too far to be timed: first output, and first input's gradient.

    A contender that returns the sum of the first output alone is compared with that sum.
    """
    found = []
    for function in (call, truth):
        copies = [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]
        out = function(*copies)
        head = out if isinstance(out, Tensor) else out[0]
        grad = None
        if backward and outputs_of(out):
            wanted = next(x for x in copies if isinstance(x, Tensor) and x.requires_grad)
            grad = torch.autograd.grad(head.sum(), wanted)[0].detach()
        found.append((head.detach(), grad))
    (mine, my_grad), (true, true_grad) = found
    if mine.dim() == 0 and true.dim() > 0:
        true = true.sum()
    pairs = [("output", mine, true)] + ([("gradient", my_grad, true_grad)] if true_grad is not None else [])
    for name, a, b in pairs:
        if a is None or a.shape != b.shape:
            return f"{name} has another shape"
        loose = 3e-2 if torch.bfloat16 in (a.dtype, b.dtype, inputs[0].dtype) else 1e-3
        error, size = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
        if not error <= loose * max(size, 1e-3):
            return f"{name} differs by {error:.1e} at values up to {size:.1e}"
    return None
