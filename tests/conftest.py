"""Before anything imports Triton: without a GPU its kernels run in the interpreter. The same examples in every run."""

import fcntl
import gc
import importlib.util
import os
import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from rmfast.signals import ASKS
from tests.interpreter import remember_builtins

# Other examples every time are for whoever looks for them: `pytest --hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton"):
        remember_builtins()


def pytest_collection_finish() -> None:
    """Collections of garbage leave out what was imported: some 0.3 s for each of those that runs ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """What a test does with signals ends with it: a shell that a later one starts cannot trap what is ignored."""
    before = {number: signal.getsignal(number) for number in ASKS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def no_plots() -> Iterator[None]:
    """Runs of a module make no plots, which take longer than all the rest of a tiny run: tests/test_train.py and
    tests/report make them."""
    from tests.tasks import ensembles

    with pytest.MonkeyPatch.context() as patch:
        ensembles.no_plots(patch)
        yield


@pytest.fixture(scope="session")
def csrc_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled ops for the CPU: the package's where they are built, for two libraries in one process end it; else
    built into a folder of their own and loaded, once for all tests and processes of tests."""
    from rmfast.kernels import compiled

    if compiled.missing() is None:
        return next((Path(__file__).resolve().parents[1] / "rmfast").glob("_C*.so"))
    build = runpy.run_path(str(Path(__file__).resolve().parents[1] / "csrc" / "build.py"))
    if build["torch_folder"]() is None or not any(map(shutil.which, ("g++", "c++"))):
        pytest.skip("no g++")
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    out = folder / "_C.so"
    with (folder / "_C.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            build["build"](out, cuda=False)
    compiled.missing.cache_clear()
    torch.ops.load_library(out)
    return out
