"""Every Triton kernel compiles for sm_80 and sm_90 as the golden file says, and by which rules that is judged."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from benchmarks.kernels.cases import OPS
from tests.kernels import aot
from tests.kernels.compiled import longest_loop

ROOT = Path(__file__).resolve().parents[2]
SOUND = {
    "registers": 128, "stack": 0, "shared": 4096, "spills": 0, "hgmma": 8, "hmma": 0, "loop": 500, "rows": 64,
    "widened": 0, "tf32": 0, "sentinels": 0, "seconds": 1.0,
}  # fmt: skip


def run(*arguments: str, program: Path = ROOT / "tests/kernels/aot.py") -> subprocess.CompletedProcess[str]:
    """In a process of its own: Triton reads TRITON_INTERPRET when kernels are defined."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, str(program), *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def variant(arch: int = 90, name: str = "kernel()") -> aot.Variant:
    kernel = SimpleNamespace(__name__=name.split("(")[0], cache_key=name)
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
        (90, {"sentinels": 1}, "1 loops around a matrix product may begin or end at a sentinel"),
        (90, {"widened": 1}, "1 of its matrix products are in fp32"),
        (90, {"tf32": 1}, "1 of its matrix products are in tf32"),
    ],
)
def test_hard_rules(arch: int, changed: dict[str, Any], fault: str | None) -> None:
    faults = aot.hard_faults(variant(arch), built(**changed))
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


@pytest.mark.parametrize(
    ("arch", "constants", "changed", "fault"),
    [
        (90, {}, {"loop": 250}, None),
        (90, {}, {"loop": 251}, "251 instructions in its inner loop, at most 250"),
        (90, {}, {"loop": 0}, "0 instructions in its inner loop"),  # the listing was not understood
        (90, {}, {"loop": 0, "rows": 0, "hgmma": 0}, None),
        (80, {}, {"hgmma": 0, "hmma": 8}, None),
        (90, {"DIM": 128}, {}, None),
        (90, {"WINDOW": 512}, {}, None),
    ],
)
def test_a_step_of_attention_is_bounded(
    arch: int, constants: dict[str, Any], changed: dict[str, Any], fault: str | None
) -> None:
    one = replace(variant(arch, "prefix_attention_dq_kernel()"), constants=aot.LOOPS_OF | {"M": 64} | constants)
    faults = aot.hard_faults(one, built(**changed))
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
    others = {
        "sources": {"kernel": "a", "broken": "b", "other": "c"},
        "kernels": {"sm_90": {"kernel(i32)": [1] * 5, "other()": [2] * 5}},
    }
    content = aot.as_golden([variant(), variant(80, "broken()")], [built(), "error"], others)
    assert content["kernels"]["sm_90"] == {"other()": [2] * 5, "kernel()": [128, 4096, 8, 0, 500]}
    assert content["sources"] == {"kernel": aot.source(variant().kernel), "other": "c"}
    aot.write_golden(content, path)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    assert "[128, 4096, 8, 0, 500]" in path.read_text(encoding="utf-8")


def test_kernels_of_a_known_source_are_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def build_all(variants: list[aot.Variant], processes: int) -> list[aot.Built | str]:
        asked[:] = [v.name for v in variants]
        return [built() for _ in variants]

    monkeypatch.setattr(aot, "build_all", build_all)
    kernels = [variant(), variant(80), variant(90, "other()")]
    rows = {"kernel()": [128, 4096, 8, 0, 500], "other()": [128, 4096, 8, 0, 500]}
    golden = {"triton": aot.triton.__version__, "kernels": {"sm_90": rows, "sm_80": rows}}
    golden["sources"] = {v.kernel.__name__: aot.source(v.kernel) for v in kernels}
    found = aot.build_changed(kernels, golden, 1)
    assert found == [None, None, None] and asked == []
    assert aot.judge(kernels[:1], [None], golden, whole=False) == []
    assert len(aot.judge(kernels[2:], [None], golden | {"kernels": {}}, whole=False)) == 2  # not in the golden file
    kernels[2].kernel.cache_key = "changed"
    assert aot.build_changed(kernels, golden, 1) == [None, None, built()] and asked == ["other()"]
    assert aot.build_changed(kernels, golden | {"triton": "0.0"}, 1) == [built()] * 3
    monkeypatch.setattr(aot, "HGMMA_ROWS", 32)
    assert aot.build_changed(kernels, golden, 1) == [built()] * 3


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
    command = [sys.executable, str(ROOT / "tests" / "kernels" / "aot.py"), "--op", next(iter(OPS))]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


@pytest.mark.slow
def test_all_kernels() -> None:
    """Those whose source is the golden file's, of the same compiler, are known; `make verify-kernels` compiles all."""
    done = run("--changed")
    faults = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert done.returncode == 0, "\n".join([*faults, done.stderr])
    golden = json.loads(aot.GOLDEN.read_text(encoding="utf-8"))["triton"]
    assert "all rules" in done.stdout or golden != triton.__version__


def test_the_golden_file_is_of_the_triton_that_make_installs() -> None:
    """Of another one only the hard rules would be held, and the golden file would be out of use unnoticed."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"triton=={json.loads(aot.GOLDEN.read_text(encoding='utf-8'))['triton']}" in pinned
