"""What a machine without a package index is given as wheels: which packages, and one command that downloads them."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.gpu.parts import ROOT
from rmfast.errors import UserError

# What images with torch and transformers leave out. The machine's own are kept; nothing is resolved, so each package's
# needs are listed too.
CARRIED = (
    "pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions", "zstandard",
    "trl", "datasets", "dill", "multiprocess", "liger-kernel", "megatron-core",
)  # fmt: skip
PINS = {"liger-kernel": "0.8.5"}  # of those that constraints.txt does not name
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pinned() -> dict[str, str]:
    """The version of each package that is carried."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("==") for line in lines if re.match(r"[\w.-]+==", line))
    return {name: PINS.get(name) or named[name] for name in CARRIED}


def lacking() -> list[str]:
    """Packages to carry to this machine, NAME==VERSION: those of `CARRIED` that are not installed."""
    found = []
    for name, number in pinned().items():
        try:
            version(name)
        except PackageNotFoundError:
            found.append(f"{name}=={number}")
    return found


def download(folder: Path) -> list[str]:
    """Put the wheels of all that is carried into a folder; what it holds then, and how it is used.

    Raises:
        UserError: a wheel cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.whl"):  # of two versions of a package pip installs neither
        path.unlink()
    wanted = [f"{name}=={number}" for name, number in pinned().items()]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--implementation", "cp", "--python-version", PYTHON, *platforms, "--dest", str(folder)]  # fmt: skip
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--wheels {folder}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 2**20
    return [
        f"{folder}: {len(wanted)} wheels for Python {PYTHON} on Linux x86-64, {size:.1f} MiB. There:",
        f"  python3 -m pip install --no-index --no-deps --target SITE {folder}/*.whl, and SITE on PYTHONPATH",
    ]
