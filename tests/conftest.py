"""Before anything imports Triton: without a GPU its kernels run in the interpreter. The same examples in every run."""

import os
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Other examples every time are for whoever looks for them: `pytest --hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def csrc_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled ops for the CPU: the package's where they are built, for two libraries in one process end it; else
    built into a folder of their own and loaded, once for all tests."""
    from rmfast.kernels import compiled

    if compiled.missing() is None:
        return next((Path(__file__).resolve().parents[1] / "rmfast").glob("_C*.so"))
    build = runpy.run_path(str(Path(__file__).resolve().parents[1] / "csrc" / "build.py"))
    if build["torch_folder"]() is None or not any(map(shutil.which, ("g++", "c++"))):
        pytest.skip("no g++")
    out = tmp_path_factory.mktemp("csrc") / "_C.so"
    build["build"](out, cuda=False)
    compiled.missing.cache_clear()
    torch.ops.load_library(out)
    return out
