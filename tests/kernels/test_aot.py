"""The rules of ahead-of-time compilation: what counts as a fault, and how the golden file is read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.kernels import aot
from benchmarks.kernels.aot_cases import CASES

ROOT = Path(__file__).resolve().parents[2]
SOUND = {
    "registers": 128, "stack": 0, "shared": 4096, "spills": 0, "hgmma": 8, "hmma": 0, "rows": 64, "seconds": 1.0,
}  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """aot.py in a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels" / "aot.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def variant(arch: int = 90, name: str = "kernel()") -> aot.Variant:
    return aot.Variant(name, "op", arch, None, {}, {}, {}, {})


def built(**changed: Any) -> aot.Built:
    return aot.Built(**SOUND | changed)


@pytest.mark.parametrize(
    ("arch", "changed", "fault"),
    [
        (90, {}, None),
        (90, {"spills": 2}, "spills: 2 local loads and stores"),
        (90, {"stack": 16}, "stack 16 B"),
        (90, {"shared": 232448}, None),
        (90, {"shared": 232449}, "232449 B of shared memory"),
        (80, {"shared": 166913, "hmma": 8}, "166913 B of shared memory"),
        (90, {"hgmma": 0, "hmma": 8}, "without HGMMA"),
        (90, {"hgmma": 0, "hmma": 8, "rows": 32}, None),
        (90, {"hgmma": 0, "rows": 32}, "without HMMA"),
        (90, {"hgmma": 0, "rows": 0}, None),
        (80, {"hgmma": 0, "hmma": 8}, None),
        (80, {"hgmma": 0}, "without HMMA"),
    ],
)
def test_hard_rules(arch: int, changed: dict[str, Any], fault: str | None) -> None:
    faults = aot.hard_faults(variant(arch), built(**changed))
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ([128, 4096, 8, 0], None),
        ([256, 8192, 8, 0], None),
        ([128 - aot.MORE_REGISTERS, 4096 - aot.MORE_SHARED, 8, 0], None),
        ([127 - aot.MORE_REGISTERS, 4096, 8, 0], "128 registers, golden"),
        ([128, 4095 - aot.MORE_SHARED, 8, 0], "4096 B of shared memory, golden"),
        ([128, 4096, 8, 4], "no HMMA any more"),
        (None, "not in the golden file"),
    ],
)
def test_golden(entry: list[int] | None, fault: str | None) -> None:
    entries = {} if entry is None else {"kernel()": entry}
    golden = {"triton": aot.triton.__version__, "kernels": {"sm_90": entries}}
    faults = aot.judge([variant()], [built()], golden, whole=True)
    assert bool(faults) == (fault is not None)
    assert fault is None or fault in faults[0]
    # Numbers of another compiler do not count; the hard rules do.
    golden["triton"] = "0.0"
    assert aot.judge([variant()], [built()], golden, whole=True) == []
    assert len(aot.judge([variant()], [built(spills=1)], golden, whole=True)) == 1


def test_kernel_gone() -> None:
    golden = {"triton": aot.triton.__version__, "kernels": {"sm_90": {"kernel()": [128, 4096, 8, 0], "old()": [1] * 4}}}
    faults = aot.judge([variant()], [built()], golden, whole=True)
    assert "old(): in the golden file, but no case starts it" in faults[0]
    assert aot.UPDATE in faults[1]
    assert aot.judge([variant()], [built()], golden, whole=False) == []


def test_golden_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    content = aot.as_golden([variant(), variant(80, "broken()")], [built(), "error"])
    aot.write_golden(content, path)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert "[128, 4096, 8, 0]" in path.read_text(encoding="utf-8")


def test_refuses_the_interpreter() -> None:
    env = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels" / "aot.py"), "--op", next(iter(CASES))]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr
