"""What this process takes of its device's memory: the most so far, and the most of a part of a step."""

import os
import resource
import sys
from pathlib import Path

import torch

_BEFORE: dict[torch.device, tuple[int, int]] = {}  # the most bytes, allocated and reserved, before the last restart


def memory_figures(device: torch.device) -> dict[str, float | None]:
    """Of this process so far: the most that it used, and on a GPU what torch took for that and how often it had to free
    all that it kept before it could take more."""
    if device.type == "cuda":
        allocated, reserved = _peaks(device)
        retries = torch.cuda.memory_stats(device)["num_alloc_retries"]
        return {
            "memory_gib": allocated / 2**30,
            "memory_reserved_gib": reserved / 2**30,
            "alloc_retries": retries,
        }
    return {"memory_gib": _resident_peak() / 2**30, "memory_reserved_gib": None, "alloc_retries": None}


def begin_part(device: torch.device) -> None:
    """Begin a part of a step, whose peak `part_bytes` gives."""
    if device.type == "cuda":
        _BEFORE[device] = _peaks(device)
        torch.cuda.reset_peak_memory_stats(device)


def part_bytes(device: torch.device) -> int:
    """The most bytes since `begin_part`; where the system keeps no such peak, on a CPU, what is resident now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # no Linux
        return _resident_peak()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _resident_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _peaks(device: torch.device) -> tuple[int, int]:
    stats = torch.cuda.memory_stats(device)
    before = _BEFORE.get(device, (0, 0))
    return (
        max(before[0], stats["allocated_bytes.all.peak"]),
        max(before[1], stats["reserved_bytes.all.peak"]),
    )
