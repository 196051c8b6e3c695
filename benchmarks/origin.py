"""Where a result is from: device, versions, commit, day; and how it is written."""

import contextlib
import datetime
import json
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rmfast.data.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "numpy", "rmfast")
PACKAGES += ("liger_kernel", "flash_attn", "apex")


def commit(tree: Path = ROOT) -> str | None:
    """The commit of a checkout, with "-dirty" where files differ from it; None outside a checkout."""
    if shutil.which("git") is None or not (tree / ".git").exists():
        return None
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def versions() -> dict[str, str]:
    """Of the packages that figures depend on, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the processor's."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def origin(device: str = "cpu") -> dict[str, Any]:
    """Device, Python, versions of the packages that are installed, commit and day."""
    found = {"device": device_name(device), "python": platform.python_version(), "versions": versions()}
    return found | {"commit": commit(), "date": datetime.date.today().isoformat()}


def write_json(path: Path, result: Any, indent: int | None = 1) -> None:
    """Write a result as JSON, whole or not at all."""
    write_text(path, json.dumps(result, indent=indent) + "\n")
