"""Every Triton kernel compiles for sm_80 and sm_90 as the golden file says, and the tool that checks it sees faults.

Run as a program this file builds kernels that have a known fault: in the tests' own process Triton may be interpreted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks.kernels import aot
from benchmarks.kernels.aot_cases import CASES
from benchmarks.kernels.compiled import longest_loop
from rmfast.kernels import prefix_layout
from rmfast.kernels.attention.triton import prefix_attention_bwd, prefix_attention_fwd
from rmfast.kernels.launch import launch, recording

ROOT = Path(__file__).resolve().parents[2]
FAR = tl.constexpr(2**31 - 1)
SOUND = {
    "registers": 128, "stack": 0, "shared": 4096, "spills": 0, "hgmma": 8, "hmma": 0, "loop": 500, "rows": 64,
    "widened": 0, "tf32": 0, "sentinels": 0, "seconds": 1.0,
}  # fmt: skip


def run(*arguments: str, program: Path = ROOT / "benchmarks/kernels/aot.py") -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, str(program), *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def variant(arch: int = 90, name: str = "kernel()") -> aot.Variant:
    kernel = SimpleNamespace(__name__=name.split("(")[0])
    return aot.Variant(name, "op", arch, kernel, {}, {}, {}, {})


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
        (90, {"hmma": 1}, "by 8 HGMMA and 1 HMMA"),
        (80, {"hgmma": 0, "hmma": 16}, None),
        (90, {"sentinels": 1}, "1 loops around a matrix product may begin at a sentinel"),
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
        ([128, 4096, 8, 0, 500], None),
        ([256, 8192, 8, 0, 600], None),
        ([128 - aot.MORE_REGISTERS, 4096 - aot.MORE_SHARED, 8, 0, 477], None),
        ([127 - aot.MORE_REGISTERS, 4096, 8, 0, 500], "128 registers, golden"),
        ([128, 4095 - aot.MORE_SHARED, 8, 0, 500], "4096 B of shared memory, golden"),
        ([128, 4096, 8, 4, 500], "no HMMA any more"),
        ([128, 4096, 8, 0, 476], "500 instructions in its inner loop, golden 476"),
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
    golden = {
        "triton": aot.triton.__version__,
        "kernels": {"sm_90": {"kernel()": [128, 4096, 8, 0, 500], "old()": [1] * 5}},
    }
    faults = aot.judge([variant()], [built()], golden, whole=True)
    assert "old(): in the golden file, but no case starts it" in faults[0]
    assert aot.UPDATE in faults[1]
    assert aot.judge([variant()], [built()], golden, whole=False) == []


def test_golden_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    others = {"kernels": {"sm_90": {"kernel(i32)": [1] * 5, "other()": [2] * 5}}}
    content = aot.as_golden([variant(), variant(80, "broken()")], [built(), "error"], others)
    assert content["kernels"]["sm_90"] == {"other()": [2] * 5, "kernel()": [128, 4096, 8, 0, 500]}
    aot.write_golden(content, path)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert "[128, 4096, 8, 0, 500]" in path.read_text(encoding="utf-8")


def test_the_inner_loop_is_the_longest_with_a_product_and_none_inside() -> None:
    """Addresses of a listing go up in steps of 16: here an outer loop of 8, one of 3 without a product, one of 2."""
    text = ["IADD3 R1, R1", "FADD R2, R2", "FADD R2, R2", "@P0 BRA 0x10", "HGMMA.64x64 R8", "@!P1 BRA 0x40",
            "EXIT", "BRA 0x0"]  # fmt: skip
    listing = "".join(f"        /*{16 * i:04x}*/   {line} ;   /* 0x0123 */\n" for i, line in enumerate(text))
    assert longest_loop(listing) == 2
    assert longest_loop(listing.replace("HGMMA", "FMUL")) == 0
    assert longest_loop(listing.replace("BRA 0x40", "BRA 0x70")) == 8


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
def ranges_kernel(a_ptr, layout_ptr, out_ptr, tokens, M: tl.constexpr, CLAMPED: tl.constexpr):
    """As attention's second range of keys was: from the first of those that anyone sees, FAR where nobody sees any."""
    m = tl.arange(0, M)
    first = tl.load(layout_ptr + m, m < tokens, FAR)
    low, high = tl.min(first, 0), tl.max(tl.where(first < FAR, m + 1, 0), 0)
    acc = tl.zeros((M, M), tl.float32)
    for begin in range(tl.minimum(low, high) if CLAMPED else low, high, M):
        key = begin + m
        a = tl.load(a_ptr + key[:, None] * M + m[None, :], key[:, None] < high, 0.0)
        acc = tl.dot(a, tl.trans(a), acc, input_precision="ieee")
    tl.store(out_ptr + m[:, None] * M + m[None, :], acc)


@triton.jit
def two_products_kernel(a_ptr, out_ptr, steps, M: tl.constexpr, N: tl.constexpr):
    """Of which one has M rows and the other N."""
    m, n = tl.arange(0, M), tl.arange(0, N)
    a = tl.load(a_ptr + m[:, None] * N + n[None, :])
    acc = tl.zeros((N, N), tl.float32)
    for step in range(0, steps):
        b = tl.load(a_ptr + step * N * N + n[:, None] * N + n[None, :])
        product = tl.dot(a, b, input_precision="ieee").to(a.dtype)
        acc = tl.dot(tl.trans(product), a, acc, input_precision="ieee")
    tl.store(out_ptr + n[:, None] * N + n[None, :], acc)


@triton.jit(do_not_specialize=["size"])
def size_kernel(x_ptr, size, stride):
    tl.store(x_ptr + size * stride, 0.0)


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


def ranges(clamped: bool) -> None:
    a, layout, out = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    launch(ranges_kernel, (1,), a, layout, out, 64, M=64, CLAMPED=clamped, num_warps=4, num_stages=3)


def two_products(m: int, n: int) -> None:
    a, out = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    launch(two_products_kernel, (1,), a, out, 16, M=m, N=n, num_warps=4, num_stages=1)


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
    "a loop that begins at a sentinel": (90, lambda: ranges(False), "1 loops around a matrix product may begin at"),
    "a loop whose beginning is bounded": (90, lambda: ranges(True), None),
    "all products by HGMMA": (90, lambda: two_products(64, 64), None),
    "products by HGMMA and HMMA": (90, lambda: two_products(64, 32), "HMMA"),
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


def forms() -> list[list[str]]:
    """Names of what is compiled for sizes that 16 divides, for one, and for another: of a kernel, and of attention."""
    names = []
    for size in (32, 1, 33):
        with recording((9, 0)) as started:
            launch(size_kernel, (1,), torch.zeros(1), size, 16)
            layout = prefix_layout([(0, [size])])
            q, lse = torch.zeros(size, 2, 64, dtype=torch.bfloat16), torch.zeros(2, size)
            for rows in (None, torch.arange(size)):
                options = (layout, rows, 0.125, None, None)
                prefix_attention_fwd(q, q, q, *options)
                prefix_attention_bwd(q, q, q, q, q, lse, *options)
        names.append([aot.variant("", 90, one).name for one in started])
    return names


def test_faults_of_built_kernels_and_forms_that_sizes_do_not_add() -> None:
    done = run(program=Path(__file__))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["faults"]
    for name, (_, _, fault) in BUILT.items():
        assert len(found[name]) == (fault is not None), (name, found[name])
        assert fault is None or fault in found[name][0], (name, found[name])

    first, *others = json.loads(done.stdout)["forms"]
    assert len(first) == len(set(first)) == 7 and all(other == first for other in others)


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


@pytest.mark.parametrize(("which", "most"), [("fwd", 575), ("dq", 250), ("dkv", 440)])
def test_inner_loops_of_attention_are_short(which: str, most: int) -> None:
    """Not the tensor cores but masks and exponentials bound them: instructions of a step at D = 64 on sm_90."""
    rows = json.loads(aot.GOLDEN.read_text(encoding="utf-8"))["kernels"]["sm_90"]
    form = "DIM=64 WIDTH=64 ROWS=False WINDOW=0 SOFTCAP=0.0"
    loops = [row[4] for name, row in rows.items()
             if name.startswith(f"prefix_attention_{which}_kernel") and "bf16" in name and form in name]  # fmt: skip
    assert len(loops) == 1 and 0 < loops[0] <= most


def test_every_launch_says_whether_products_and_sums_are_fused() -> None:
    """Its default is another from Triton 3.10 on."""
    with recording((9, 0)) as started:
        softmax(64)
    assert started[0].options["enable_fp_fusion"] is True


if __name__ == "__main__":
    print(json.dumps({"faults": build_faulty(), "forms": forms()}))
