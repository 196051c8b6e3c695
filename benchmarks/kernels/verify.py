"""What an op's own tests say on the device that is measured: no figure without the verdict on its op."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "kernels"
PASSED, NOT_RUN = "passed", "not run"


@cache
def fingerprint() -> str:
    """Hash of all that a verdict depends on: kernels and their tests as they lie here, torch, and the device."""
    digest = hashlib.sha256()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    digest.update(f"{torch.__version__} {sys.version} {device}".encode())
    for folder in (ROOT / "kernels", TESTS):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"\n{path.relative_to(ROOT)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_file() -> Path:
    """Where passes are remembered."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "rmfast" / "verified.json"


def run_tests(test: str) -> str | None:
    """What a test file says against its op: None if it passes, else its last line."""
    path = TESTS / test
    if not path.is_file():
        return f"there is no {path.relative_to(ROOT)}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else (done.stdout + done.stderr).strip().splitlines()[-1]


def passed() -> list[str]:
    """Test files that passed with everything as it is now."""
    try:
        known = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    return known.get(fingerprint(), [])


def remember(test: str) -> None:
    """Note that a test file passed; also while others do."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with (Path(tempfile.gettempdir()) / "rmfast-verified.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({fingerprint(): sorted({*passed(), test})}), encoding="utf-8")
        partial.replace(path)


def verdict(test: str) -> str:
    """What a test file says of its op: PASSED, or why not. Passes are remembered until anything changes."""
    if test in passed():
        return PASSED
    found = run_tests(test)
    if found is None:
        remember(test)
    return found or PASSED
