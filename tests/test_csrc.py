"""The compiled library: it builds, its ops give the reference's bits on the CPU, its CUDA code does not spill."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rmfast.kernels.multi_tensor import adamw_, gradient_norm, perturb_, restore_

ROOT = Path(__file__).resolve().parents[1]
BUILD = runpy.run_path(str(ROOT / "csrc" / "build.py"))
SIZES = [0, 1, 2, 3, 7, 64, 1023, 1024, 1025, 16383, 16384, 16385, 40001]

needs_fma = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="needs a processor with AVX2",
)


def tensors(dtype: torch.dtype = torch.float32, *, offset: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Of all sizes, contiguous; `offset` elements behind where memory was allocated."""
    return [(torch.randn(size + offset) * scale).to(dtype)[offset:] for size in SIZES]


@needs_fma
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("grad_type", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beta1", [0.9, 0.3])
def test_adamw_gives_the_references_bits(
    csrc_library: Path,
    monkeypatch: pytest.MonkeyPatch,
    exact: bool,
    offset: int,
    grad_type: torch.dtype,
    beta1: float,
) -> None:
    """Moments always; weights where the reference's square roots are rounded correctly, which MKL's are not."""
    if exact:
        monkeypatch.setattr(torch, "_foreach_sqrt", lambda ts: [t.double().sqrt().float() for t in ts])
    results = []
    for impl in ("csrc", "reference"):
        torch.manual_seed(1)
        weights, exp_avg, exp_avg_sq = (tensors(offset=offset) for _ in range(3))
        exp_avg_sq = [v.square() for v in exp_avg_sq]
        for step in (1.0, 2.0, 1000.0):
            adamw_(
                weights, tensors(grad_type, offset=offset), exp_avg, exp_avg_sq, step=torch.tensor(step), lr=3e-3,
                betas=(beta1, 0.95), weight_decay=[0.1 * (i % 2) for i in range(len(SIZES))],
                grad_scale=torch.tensor(1.7) if step > 1 else None, skip=torch.tensor(step == 1000),
                impl=impl,
            )  # fmt: skip
        results.append([*weights, *exp_avg, *exp_avg_sq])
    for i, (got, want) in enumerate(zip(*results, strict=True)):
        if exact or len(SIZES) <= i:
            assert torch.equal(got, want)
        else:
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("skip", [torch.tensor(True), torch.tensor(1.0)])
def test_a_skipped_step_leaves_no_trace(csrc_library: Path, skip: Tensor) -> None:
    lists = [tensors(), tensors(scale=torch.nan), tensors(), tensors()]
    before = [[t.clone() for t in ts] for ts in lists]
    adamw_(*lists, step=torch.tensor(1.0), lr=0.1, skip=skip, impl="csrc")
    for now, then in zip(lists, before, strict=True):
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(now, then, strict=True))


@pytest.mark.parametrize("grad_type", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target_type", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_perturb_and_restore_give_the_references_bits(
    csrc_library: Path, grad_type: torch.dtype, target_type: torch.dtype, offset: int
) -> None:
    masters, grads = tensors(offset=offset), tensors(grad_type, offset=offset)
    mine, reference = tensors(target_type, offset=offset), tensors(target_type, offset=offset)
    for eta in (0.37, torch.tensor(0.37)):
        perturb_(mine, masters, grads, eta=eta, impl="csrc")
        perturb_(reference, masters, grads, eta=eta, impl="reference")
        assert all(torch.equal(a, b) for a, b in zip(mine, reference, strict=True))
    assert not torch.equal(mine[-1], masters[-1].to(target_type))
    restore_(mine, masters, impl="csrc")
    assert all(torch.equal(t, m.to(target_type)) for t, m in zip(mine, masters, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_norm(csrc_library: Path, dtype: torch.dtype) -> None:
    for offset, scale in ((0, 1.0), (1, 1e25), (0, 1e-30)):
        grads = tensors(dtype, offset=offset, scale=scale)
        want = torch.cat([g.double() for g in grads]).norm()
        got = gradient_norm(grads, impl="csrc")
        assert got.dtype == torch.float32 and got.shape == ()
        torch.testing.assert_close(got.double(), want, rtol=1e-7, atol=0)
        torch.set_num_threads(2)
        assert torch.equal(gradient_norm(grads, impl="csrc"), got)
        torch.set_num_threads(1)
    for bad in (torch.nan, torch.inf):
        grads[-1][-1] = bad
        assert not gradient_norm(grads, impl="csrc").isfinite()
    assert gradient_norm([torch.zeros(0, dtype=dtype)], impl="csrc") == 0


def test_bf16_is_rounded_as_torch_does(csrc_library: Path) -> None:
    bits = torch.cat([torch.randint(-(2**31), 2**31, (40000,)), torch.arange(-(2**31), 2**31, 2**17 - 1)])
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, 1e-45, 1.00390625, 1.01171875])
    masters = torch.cat([bits.to(torch.int32).view(torch.float32), special])
    target = torch.empty(masters.shape, dtype=torch.bfloat16)
    restore_([target], [masters], impl="csrc")
    want = masters.bfloat16()
    same = (target.view(torch.int16) == want.view(torch.int16)) | (target.isnan() & want.isnan())
    assert same.all()


def test_what_it_cannot_take_is_the_references(csrc_library: Path) -> None:
    wide, grads = [torch.zeros(3, dtype=torch.float64)], [torch.ones(3, dtype=torch.float64)]
    for impl, fails in (("auto", False), ("csrc", True)):
        for weights in (wide, [torch.zeros(3, 2).T]):
            lists = [[w.clone(memory_format=torch.preserve_format) for w in weights] for _ in range(4)]
            lists[1] = [torch.ones_like(w) for w in weights]
            if fails:
                with pytest.raises(ValueError, match="adamw_: impl='csrc' is not possible: it takes"):
                    adamw_(*lists, step=torch.tensor(1.0), lr=0.5, impl=impl)
            else:
                adamw_(*lists, step=torch.tensor(1.0), lr=0.5, impl=impl)
                torch.testing.assert_close(lists[0][0], torch.full_like(lists[0][0], -0.5))
    assert gradient_norm(grads) == torch.tensor(3.0).sqrt()


def test_setup_builds_it_only_when_asked(tmp_path: Path) -> None:
    if not any(map(BUILD["shutil"].which, ("g++", "c++"))):
        pytest.skip("no g++")
    for wish, builds in (("0", False), ("1", True), ("maybe", None)):
        lib = tmp_path / f"lib{wish}"
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", lib, "--build-temp", tmp_path / "temp"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "RMFAST_BUILD_EXT": wish}, capture_output=True, text=True
        )
        if builds is None:
            assert done.returncode and "RMFAST_BUILD_EXT must be" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            assert bool(list(lib.glob("rmfast/_C*.so"))) == builds


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_cuda_kernels_compile_without_spills(tmp_path: Path, architecture: str) -> None:
    nvcc = BUILD["nvcc"]()
    if nvcc is None:
        pytest.skip("no nvcc")
    source = ROOT / "csrc" / "multi_tensor_cuda.cu"
    flags = [*BUILD["NVCC"], f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", "-o", tmp_path / "out.cubin"]
    done = subprocess.run([nvcc, *flags, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == 4, done.stderr
    assert all(numbers == ("0", "0", "0") for numbers in spills), done.stderr
    assert "warning" not in done.stderr.lower()


def test_a_library_of_other_sources_is_not_taken(csrc_library: Path, tmp_path: Path) -> None:
    """What a new name for an argument would end in is torch's error of a schema, in the first step of a run."""
    checkout, package = tmp_path / "csrc", tmp_path / "rmfast"
    shutil.copytree(ROOT / "csrc", checkout)
    package.mkdir()
    shutil.copy(csrc_library, package)
    imports = "from pathlib import Path; from rmfast.kernels import compiled"
    asked = f"{imports}; print(compiled.missing(Path({str(package)!r})))"

    def reason() -> str:
        return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()

    assert reason() == "None"
    with (checkout / "bindings.cpp").open("a") as file:
        file.write("// changed\n")
    assert reason() == (
        f"{package}/_C.so was built from other sources than csrc/ holds: build it again (csrc/README.md says how)"
    )
