"""Every Triton kernel compiles for sm_80 and sm_90 as the golden file says, and the tool that checks it sees faults.

Run as a program this file builds kernels that have a known fault: in the tests' own process Triton may be interpreted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks.kernels import aot
from benchmarks.kernels.aot_cases import CASES
from rmfast.kernels.launch import launch, recording

ROOT = Path(__file__).resolve().parents[2]
SOUND = {
    "registers": 128, "stack": 0, "shared": 4096, "spills": 0, "hgmma": 8, "hmma": 0, "rows": 64, "widened": 0,
    "tf32": 0, "seconds": 1.0,
}  # fmt: skip


def run(*arguments: str, program: Path = ROOT / "benchmarks/kernels/aot.py") -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, str(program), *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


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
        (90, {"widened": 1}, "1 of its matrix products are in fp32"),
        (90, {"tf32": 1}, "1 of its matrix products are in tf32"),
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


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr, steps, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros((M, N), tl.float32)
    for step in range(0, steps):
        a = tl.load(a_ptr + m[:, None] * steps * K + step * K + k[None, :])
        b = tl.load(b_ptr + (step * K + k[:, None]) * N + n[None, :])
        if WIDE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(out_ptr + m[:, None] * N + n[None, :], acc)


@triton.jit
def softmax_kernel(x_ptr, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    p = tl.exp(x - tl.max(x, 0))
    tl.store(x_ptr + at, p / tl.sum(p, 0))


def product(
    m: int, n: int, k: int, warps: int, stages: int, wide: bool = False, precision: str = "ieee",
    dtype: torch.dtype = torch.bfloat16,
) -> None:  # fmt: skip
    a, b, out = torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=dtype), torch.zeros(1)
    tile = {"M": m, "N": n, "K": k, "num_warps": warps, "num_stages": stages}
    launch(product_kernel, (1,), a, b, out, 16, WIDE=wide, PRECISION=precision, **tile)


def softmax(width: int) -> None:
    launch(softmax_kernel, (1,), torch.zeros(1), WIDTH=width, num_warps=1)


# What is started, for which architecture, and the fault that it must be told of.
BUILT: dict[str, tuple[int, Callable[[], None], str | None]] = {
    "sound, sm_80": (80, lambda: product(64, 64, 32, 4, 2), None),
    "sound, sm_90": (90, lambda: product(64, 64, 32, 4, 2), None),
    "too few rows for HGMMA": (90, lambda: product(16, 64, 32, 4, 2), None),
    "too few warps for HGMMA": (90, lambda: product(64, 64, 32, 2, 2), "multiplies bf16 matrices without HGMMA"),
    "widened": (90, lambda: product(64, 16, 16, 4, 1, wide=True), "1 of its matrix products are in fp32"),
    "rounded to tf32": (
        80,
        lambda: product(64, 64, 32, 4, 2, precision="tf32", dtype=torch.float32),
        "1 of its matrix products are in tf32",
    ),
    "too many stages, sm_80": (80, lambda: product(128, 128, 128, 8, 4), "the device has 166912"),
    "too many stages, sm_90": (90, lambda: product(128, 128, 128, 8, 5), "the device has 232448"),
    "spills": (80, lambda: softmax(8192), "local loads and stores"),
    "no power of two": (90, lambda: softmax(48), "does not compile"),
}


def build_faulty() -> dict[str, list[str]]:
    found = {}
    for name, (arch, start, _) in BUILT.items():
        with recording((arch // 10, arch % 10)) as started:
            start()
        one = aot.variant("", arch, started[0])
        found[name] = aot.hard_faults(one, aot.build_all([one], 1)[0])
    return found


def test_faults_of_built_kernels() -> None:
    done = run(program=Path(__file__))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, (_, _, fault) in BUILT.items():
        assert len(found[name]) == (fault is not None), (name, found[name])
        assert fault is None or fault in found[name][0], (name, found[name])


@pytest.mark.slow
def test_all_kernels() -> None:
    done = run()
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert done.returncode == 0, "\n".join([*faults, done.stderr])
    golden = json.loads(aot.GOLDEN.read_text(encoding="utf-8"))["triton"]
    assert "all rules" in done.stdout or golden != triton.__version__


def test_the_golden_file_is_of_the_triton_that_make_installs() -> None:
    """Of another one only the hard rules would be held, and the golden file would be out of use unnoticed."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"triton=={json.loads(aot.GOLDEN.read_text(encoding='utf-8'))['triton']}" in pinned


def test_every_launch_says_whether_products_and_sums_are_fused() -> None:
    """Its default is another from Triton 3.10 on."""
    with recording((9, 0)) as started:
        softmax(64)
    assert started[0].options["enable_fp_fusion"] is True


if __name__ == "__main__":
    print(json.dumps(build_faulty()))
