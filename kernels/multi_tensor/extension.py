"""The compiled library of csrc/: found in the package's folder, loaded when it is first asked for."""

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch


@cache
def missing(folder: Path | None = None) -> str | None:
    """Load the library, once; why there is none, or None.

    Args:
        folder: holds `_C*.so`; default the package's.
    """
    if hasattr(torch.ops.rmfast_C, "adamw_"):  # loaded by another name
        return None
    spec = find_spec("rmfast")
    place = folder or Path(next(iter(spec.submodule_search_locations or [])) if spec else ".")
    found = sorted(place.glob("_C*.so"))
    if not found:
        return "the compiled ops are not built (csrc/README.md says how)"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        reason = f"the compiled ops do not load: {error}"
        warnings.warn(reason, stacklevel=2)
        return reason
    return None


def cuda_missing() -> str | None:
    """As `missing`, for tensors on a GPU."""
    return missing() or (None if torch.ops.rmfast_C.has_cuda() else "the compiled ops were built without CUDA")
