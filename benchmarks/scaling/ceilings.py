"""What this machine's products, memory and links reach, as a file for `rmfast plan --gpu FILE.json`.

    torchrun --standalone --nproc_per_node 2 benchmarks/scaling/ceilings.py --out FILE.json [--width 4096 --ffn 14336]

GPUs: wall time, NCCL; on several nodes also the network. A CPU: CPU time of one process, gloo: on a shared machine
nothing else means anything, and a link's rate is then what its copies cost rather than how long they take.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.origin import device_name, write_json
from rmfast.parallel.world import World

ROUNDS = 5


def clock(device: torch.device) -> float:
    """Seconds, by what is measured on this device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, after one that does not count."""
    found = []
    for _ in range(ROUNDS + 1):
        before = clock(device)
        run()
        found.append(clock(device) - before)
    return median(found[1:])


def matrix_rate(device: torch.device, dtype: torch.dtype, tokens: int, sizes: list[tuple[int, int]]) -> float:
    """FLOP/s of the three products that each linear layer [inputs, outputs] takes in a step."""
    operands = [
        [torch.randn(*s, device=device, dtype=dtype) for s in ((tokens, i), (o, i), (tokens, o))] for i, o in sizes
    ]

    def run() -> None:
        for x, weight, grad in operands:
            x @ weight.T, grad @ weight, grad.T @ x

    return 6 * tokens * sum(i * o for i, o in sizes) / median_seconds(run, device)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device)


def slowest_seconds(world: World, run: Callable[[], object]) -> float:
    """Of one call on the slowest rank."""
    took = torch.tensor(median_seconds(run, world.device), dtype=torch.float64)
    world.max_(took)
    return float(took)


def reduce_rate(world: World, group: Any, ranks: int, size: int) -> float:
    """Bytes a second that each rank sends in an all-reduce of fp32."""
    buffer = torch.zeros(size // 4, device=world.device)
    return 2 * (ranks - 1) / ranks * size / slowest_seconds(world, lambda: dist.all_reduce(buffer, group=group))


def ceilings(world: World, *, width: int, ffn: int, tokens: int, size: int) -> dict[str, Any]:
    """A file's values. All ranks call it, with the process group open.

    Args:
        width, ffn, tokens: of the products. size: bytes of a copy and of what travels.
    """
    device, local = world.device, int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    sizes = [(width, width), (width, 2 * ffn), (ffn, width)]
    cuda = device.type == "cuda"
    single = matrix_rate(device, torch.float32, tokens, sizes)
    # A CPU without bf16 units would take minutes, and no run would compute so.
    matrix = matrix_rate(device, torch.bfloat16, tokens, sizes) if cuda else single
    copy = bandwidth(device, size)
    inside = network = copy  # one rank alone has no links: they are never read
    about: dict[str, Any] = {"clock": "wall" if cuda else "cpu of one process", "sizes": [width, ffn, tokens, size]}
    if world.size > 1:
        nodes = [list(range(start, start + local)) for start in range(0, world.size, local)]
        node = world.line(nodes)
        if local > 1:
            inside = reduce_rate(world, node, local, size)
        network = reduce_rate(world, None, world.size, size) if len(nodes) > 1 else inside
    if cuda:
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / local
    about |= {"device": device_name(device.type), "torch": torch.__version__}
    about |= {"threads": torch.get_num_threads(), "ranks": world.size}
    rates = {"memory": memory, "matrix": matrix, "single": single, "bandwidth": copy}
    links = {"nvlink": inside, "network": network, "node": local, "matrix_share": 1.0, "link_share": 1.0}
    return rates | links | {"about": about}


def main(arguments: list[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    sizes = {"width": (512, 4096), "ffn": (1536, 14336), "tokens": (512, 16384), "size": (2**26, 2**30)}
    for name, (cpu, gpu) in sizes.items():
        what = "bytes copied" if name == "size" else "of the products"
        parser.add_argument(f"--{name}", type=int, default=gpu if cuda else cpu, help=f"{what} (default %(default)s)")
    options = parser.parse_args(arguments)
    with World() as world:
        found = ceilings(world, **{name: getattr(options, name) for name in sizes})
    if world.main:
        write_json(options.out, found)
        rates = {name: found[name] / 1e9 for name in ("single", "matrix", "bandwidth", "nvlink")}
        print(f"{options.out}: {rates['single']:,.1f} GFLOP/s in fp32, {rates['matrix']:,.1f} in bf16, "
              f"{rates['bandwidth']:,.2f} GB/s of memory, {rates['nvlink']:,.2f} GB/s within a node")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
