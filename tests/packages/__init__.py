"""Packages of the signatures and the arithmetic of others' that need a GPU to build, in plain torch.

Each folder holds what would be in site-packages. Signatures and checks are those of the published sources: NVIDIA/apex
at 6424da3 (csrc/amp_C_frontend.cpp, multi_tensor_adam.cu, multi_tensor_apply.cuh, multi_tensor_l2norm_kernel.cu) and
Dao-AILab/flash-attention 2.7.0 to 2.8.4 (flash_attn/flash_attn_interface.py).
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmfast.kernels.multi_tensor import apex
from rmfast.kernels.prefix_attention import flash_package

NAMES = ("amp_C", "apex", "flash_attn")


@contextmanager
def installed(*folders: str | Path) -> Iterator[pytest.MonkeyPatch]:
    """Within it the packages of some folders are installed, by name of those beside this file or by path."""
    with pytest.MonkeyPatch.context() as patch:
        _forget()
        for folder in folders:
            patch.syspath_prepend(Path(__file__).parent / folder)
        importlib.invalidate_caches()
        yield patch
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        del sys.modules[name]
    for function in (apex.missing, flash_package.missing):
        function.cache_clear()
