"""The same random numbers in every run and for every test, whatever ran before it."""

import fcntl
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.kernels.harness import DEVICE


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def alone_on_the_gpu() -> Iterator[None]:
    """For tests whose tensors span many gigabytes, untouched: that costs nothing on the CPU, but on a GPU it does.

    Waits for such tests of other processes of this machine, and gives the memory back.
    """
    if DEVICE.type == "cpu":
        yield
        return
    with (Path(tempfile.gettempdir()) / f"rmfast-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        gc.collect()
        torch.cuda.empty_cache()
