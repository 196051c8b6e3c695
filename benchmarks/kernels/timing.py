"""Measuring: seconds of a call on the CPU or on a GPU with cold caches, peak memory, and what the device can do."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
L2_BYTES = 256 << 20  # written between calls: more than any L2, so that inputs come from memory
CYCLES = 2.0e9  # of a GPU in a second, or a little fewer
LEAST_WAIT, MOST_WAIT = 1e-3, 10e-3  # seconds for which the GPU waits, so that a whole call is queued before it starts
LOAD = 0.5  # seconds of work before a ceiling is measured: clocks and power are then those of a busy device


class Sample(NamedTuple):
    """Milliseconds of calls in order, and bytes that one call allocated beyond what was there (GPU only)."""

    milliseconds: list[float]
    peak_bytes: int | None


def outputs_of(result: Any) -> list[Tensor]:
    """Floating-point tensors of a result that carry gradients."""
    found = [result] if isinstance(result, Tensor) else list(result)
    return [o for o in found if isinstance(o, Tensor) and o.requires_grad]


def leaves_of(inputs: list[Any]) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]


def gradients(call: Callable[..., Any], inputs: list[Any], *, again: bool) -> Callable[[], Any]:
    """A function that takes the gradients of a call; of ones, in the memory layout of the outputs, made once. The call
    is made each time where it is to be made `again`, else it was made before."""
    made = outputs_of(call(*inputs))
    heads = [torch.ones_like(o) for o in made]
    leaves = leaves_of(inputs)

    def run() -> Any:
        outputs = outputs_of(call(*inputs)) if again else made
        return torch.autograd.grad(outputs, leaves, heads, allow_unused=True, retain_graph=not again)

    return run


def pass_of(which: str, call: Callable[..., Any], inputs: list[Any]) -> Callable[[], Any]:
    """FORWARD, BACKWARD or BOTH of a call."""
    return torch.no_grad()(lambda: call(*inputs)) if which == FORWARD else gradients(call, inputs, again=which == BOTH)


def apart(found: Sequence[Tensor | None], true: Sequence[Tensor | None], *, bf16: bool = False) -> str | None:
    """How far results are from plain torch's, where that is too far; None among the true ones is not compared."""
    for place, (a, b) in enumerate(zip(found, true, strict=True)):
        if b is None:
            continue
        if a is None or a.shape != b.shape:
            return f"result {place} has another shape"
        loose = 3e-2 if bf16 or torch.bfloat16 in (a.dtype, b.dtype) else 1e-3
        error, size = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
        if not error <= loose * max(size, 1e-3):
            return f"result {place} differs by {error:.1e} at values up to {size:.1e}"
    return None


def measure(call: Callable[[], Any], device: torch.device, *, calls: int) -> Sample:
    """Time some calls; the callers warm up before and take turns between rounds.

    A GPU sleeps before each while the host queues all of the call: the events are then next to its kernels in the
    queue, and what Python, custom ops and autograd take (100 to 300 us) is not in the time of a short op.
    """
    if device.type != "cuda":
        spent = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            spent.append(1e3 * (time.perf_counter() - start))
        return Sample(spent, None)
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device=device)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    cycles = wait_cycles(time.perf_counter() - begin)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    for start, end in events:
        enqueue(call, flush, start, end, cycles)
    torch.cuda.synchronize(device)
    return Sample([s.elapsed_time(e) for s, e in events], torch.cuda.max_memory_allocated(device) - before)


def wait_cycles(host_seconds: float) -> int:
    """Cycles for which a GPU waits before a call that the host needs so long to queue: twice that, within limits."""
    return int(CYCLES * min(max(LEAST_WAIT, 2 * host_seconds), MOST_WAIT))


def enqueue(call: Callable[[], Any], flush: Tensor, start: Any, end: Any, cycles: int) -> None:
    """Put into the GPU's queue: the caches' flush, a wait, and the call between two events."""
    flush.zero_()
    torch.cuda._sleep(cycles)
    start.record()
    call()
    end.record()


def load(call: Callable[[], Any], device: torch.device) -> None:
    """Keep the device busy with a call; once on a CPU, which has no clocks to wait for here."""
    begin = time.perf_counter()
    while True:
        call()
        if device.type != "cuda":
            return
        torch.cuda.synchronize(device)
        if time.perf_counter() - begin > LOAD:
            return


def bandwidth(device: torch.device, *, size: int) -> float:
    """Bytes per second, reads and writes together, of a copy of `size` random bytes on a busy device."""
    source = torch.randint(-128, 128, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    load(lambda: target.copy_(source), device)
    return 2 * size / (1e-3 * median(measure(lambda: target.copy_(source), device, calls=7).milliseconds))


def matmul_rate(device: torch.device, dtype: torch.dtype, *, width: int) -> float:
    """FLOP per second of a square matrix product of normal numbers on a busy device."""
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    load(lambda: a @ b, device)
    return 2 * width**3 / (1e-3 * median(measure(lambda: a @ b, device, calls=7).milliseconds))


def limits(device: torch.device, *, small: bool) -> dict[str, Any]:
    """What this device does now: bytes/s of a copy, FLOP/s of a matrix product."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size, width = (1 << 24, 512) if small else (1 << 30, 8192) if device.type == "cuda" else (1 << 28, 2048)
    rate = matmul_rate(device, dtype, width=width)
    return {"bandwidth": bandwidth(device, size=size), "matmul": rate, "dtype": str(dtype).removeprefix("torch.")}


def better(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The best rates of several measurements of the limits: a ceiling that is too low would flatter the kernels."""
    return measured[0] | {name: max(each[name] for each in measured) for name in ("bandwidth", "matmul")}


def against_limit(row: dict[str, Any], hardware: dict[str, Any]) -> dict[str, Any]:
    """The least time that a row's bytes and FLOPs take at the hardware's rates, and its share of the time taken."""
    memory, compute = row["bytes"] / hardware["bandwidth"], row["flops"] / hardware["matmul"]
    limit = 1e3 * max(memory, compute)
    return {
        "limit_milliseconds": limit,
        "share_of_limit": limit / row["milliseconds"],
        "limit_by": "memory" if memory >= compute else "matmul",
    }
