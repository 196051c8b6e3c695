"""What a program has around it: what torch reads as it is imported (what the user has set stays), who reads its
output."""

import os
import select
import sys

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name


def prepare() -> None:
    """Set what torch is to find; call it before torch is imported."""
    # Packs differ in size. Blocks that cannot grow leave gaps between them, and near the end of the memory the
    # allocator then frees all that it keeps, for which the device must be idle.
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    # DDP looks for unused parameters so that its sums keep their order (parallel/native.py), and would warn of it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def nobody_reads() -> bool:
    """Whether standard output's reader has closed it, as `head` does after its lines. What is not yet printed is then
    dropped, or Python would report an error as it exits."""
    if sys.stdout is None:
        return False
    out = sys.stdout.fileno()
    look = select.poll()
    look.register(out, 0)
    if not look.poll(0):  # an error or a hang-up
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True
