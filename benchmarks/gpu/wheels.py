"""What a machine without a package index is given as wheels: which packages, and one command that downloads them."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.parts import ROOT
from rmfast.errors import UserError

# What images with torch and transformers leave out, and the module of each. The machine's own are kept; nothing is
# resolved, so each package's needs are listed too.
CARRIED = {
    "pydantic": "pydantic", "pydantic_core": "pydantic_core", "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection", "typing_extensions": "typing_extensions", "zstandard": "zstandard",
    "trl": "trl", "datasets": "datasets", "dill": "dill", "multiprocess": "multiprocess",
    "liger-kernel": "liger_kernel", "megatron-core": "megatron",
}  # fmt: skip
PINS = {"liger-kernel": "0.8.5"}  # of those that constraints.txt does not name
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pinned(*, lacking: bool = False) -> list[str]:
    """Packages that are carried, NAME==VERSION; those alone that this machine lacks."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("==") for line in lines if re.match(r"[\w.-]+==", line)) | PINS
    return [f"{name}=={named[name]}" for name, module in CARRIED.items() if not (lacking and find_spec(module))]


def download(folder: Path) -> list[str]:
    """Put the wheels of all that is carried into a folder; what it holds then, and how it is used.

    Raises:
        UserError: a wheel cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.whl"):  # of two versions of a package pip installs neither
        path.unlink()
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--implementation", "cp", "--python-version", PYTHON, *platforms, "--dest", str(folder)]  # fmt: skip
    done = subprocess.run([*command, *pinned()], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--wheels {folder}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 2**20
    return [
        f"{folder}: {len(CARRIED)} wheels for Python {PYTHON} on Linux x86-64, {size:.1f} MiB. There:",
        f"  python3 -m pip install --no-index --no-deps --target SITE {folder}/*.whl, and SITE on PYTHONPATH",
    ]
