"""How much memory is free on a device."""

import os
from pathlib import Path

import torch

MEMORY = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
"""Of a container or a Slurm job, where it limits memory; read as cgroups of version 2 write it."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; of the CPU this process's share of what torchrun's may still take."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # an earlier call's pool
        return torch.cuda.mem_get_info(device)[0] + cached
    if MEMORY.is_file():
        found = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
        free = int(found["MemAvailable"].split()[0]) * 1024
    else:  # not Linux: a guess
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return int(min(free, _in_group())) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _in_group() -> float:
    """What the limit of this process's group leaves; infinite where there is none."""
    most, used = GROUP / "memory.max", GROUP / "memory.current"
    if not most.is_file() or not used.is_file() or (limit := most.read_text().strip()) == "max":
        return float("inf")
    return max(int(limit) - int(used.read_text()), 0)
