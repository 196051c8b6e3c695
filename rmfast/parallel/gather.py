"""What ranks tell each other that has no fixed size."""

import torch

from rmfast.outputs.process import launcher
from rmfast.parallel.world import World

LAUNCHERS = 1000
"""So many are told of a larger job: any one of them is enough."""


def gather_bytes(world: World, data: bytes) -> list[bytes]:
    """Every rank's bytes, in the ranks' order; all ranks call it."""
    if world.size == 1:
        return [data]
    sizes = torch.zeros(world.size, dtype=torch.int64)
    sizes[world.rank] = len(data)
    counts = world.sum_(sizes).tolist()
    padded = torch.zeros(max(*counts, 1), dtype=torch.uint8)
    padded[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
    return [part[:count].numpy().tobytes() for part, count in zip(world.gather(padded), counts, strict=True)]


def gather_launchers(world: World) -> tuple[str, ...]:
    """What started the ranks, see `launcher`; all ranks call it."""
    return tuple(sorted({name.decode() for name in gather_bytes(world, launcher().encode())} - {""}))[:LAUNCHERS]
