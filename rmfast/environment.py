"""What torch reads from the environment as it is imported; what the user has set stays."""

import os

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name


def prepare() -> None:
    """Set what torch is to find; call it before torch is imported."""
    # Packs differ in size. Blocks that cannot grow leave gaps between them, and near the end of the memory the
    # allocator then frees all that it keeps, for which the device must be idle.
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    # DDP looks for unused parameters so that its sums keep their order (parallel/native.py), and would warn of it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
