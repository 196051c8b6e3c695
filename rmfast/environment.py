"""What a program has around it: what torch reads as it is imported (what the user has set stays), who reads its
output."""

import os
import select
import sys
import threading
import time

POLL = 1.0  # seconds between looks whether the parent lives
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second is the older name


def prepare() -> None:
    """Set what torch is to find; call it before torch is imported."""
    # Packs differ in size. Blocks that cannot grow leave gaps between them, and near the end of the memory the
    # allocator then frees all that it keeps, for which the device must be idle.
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # of a name that is not there one line is enough, which is ours
    # DDP looks for unused parameters so that its sums keep their order (parallel/native.py), and would warn of it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def end_with_launcher() -> None:
    """End this process when torchrun has ended without ending it, as after SIGKILL; the first rank of a machine says
    so. A process that torchrun has not started may outlive its parent, a shell."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        line = "torchrun has ended, and its processes end with it; the same command goes on from what is saved"
        end_with_parent(line if os.environ.get("LOCAL_RANK") == "0" else None)


def end_with_parent(line: str | None = None, parent: int | None = None) -> None:
    """End this process, also in the midst of its work, when the one that started it has ended.

    Args:
        line: that is printed then.
        parent: its number, where it may have ended already.
    """
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        if line is not None:
            print(f"rmfast: {line}", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="rmfast.parent").start()


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
