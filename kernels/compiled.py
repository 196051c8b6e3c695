"""The compiled library of csrc/: found in the package's folder, loaded when it is first asked for."""

import runpy
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
    if hasattr(torch.ops.rmfast_C, "source"):  # loaded by another name
        return None
    spec = find_spec("rmfast")
    place = folder or Path(next(iter(spec.submodule_search_locations or [])) if spec else ".")
    found = sorted(place.glob("_C*.so"))
    if not found:
        return "the compiled ops are not built (csrc/README.md says how)"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        reason: str | None = f"the compiled ops do not load: {error}"
    else:
        reason = _outdated(place.parent / "csrc", found[0])
    if reason is not None:
        warnings.warn(reason, stacklevel=2)
    return reason


def _outdated(sources: Path, library: Path) -> str | None:
    """Whether a library was built from other sources than those of this checkout; an installation has none."""
    script = sources / "build.py"
    if not script.is_file():
        return None
    built = torch.ops.rmfast_C.source() if hasattr(torch.ops.rmfast_C, "source") else None
    if built == runpy.run_path(str(script))["source_number"]():
        return None
    return f"{library} was built from other sources than csrc/ holds: build it again (csrc/README.md says how)"
