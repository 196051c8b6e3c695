"""Where a result is from: device, versions, commit, day; and how it is written."""

import contextlib
import datetime
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rmfast.data.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "transformers", "trl", "liger_kernel", "accelerate", "rmfast")


def commit(tree: Path = ROOT) -> str | None:
    """The commit of a checkout, with "-dirty" where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def origin(device: str = "cpu") -> dict[str, Any]:
    """Device, Python, versions of the packages that are installed, commit and day."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    found = {"device": device_name(device), "python": platform.python_version(), "versions": versions}
    return found | {"commit": commit(), "date": datetime.date.today().isoformat()}


def write_json(path: Path, result: Any, indent: int | None = 1) -> None:
    """Write a result as JSON, whole or not at all."""
    write_text(path, json.dumps(result, indent=indent) + "\n")
