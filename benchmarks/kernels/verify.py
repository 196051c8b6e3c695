"""What an op's tests say on the device that is measured: no figure without the verdict on its op."""

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "kernels"
PASSED, NOT_RUN = "passed", "not run"


@cache
def verdict(test: str) -> str:
    """What a test file says of its op: PASSED, or its first failure."""
    path = TESTS / test
    if not path.is_file():
        return f"there is no {test}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return PASSED
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else (done.stdout + done.stderr).strip().splitlines()[-1]
