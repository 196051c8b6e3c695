"""Builds the shared library of the compiled ops: `python csrc/build.py OUT.so [--cuda]`. Imports no torch."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020B000000000000"  # the oldest torch that loads the library: 2.11
CXX = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
CXX += ["-fno-trapping-math", "-Wall"]
NVCC = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
ARCHITECTURES = ("80", "90")


def torch_folder() -> Path | None:
    """Where torch lies, if it is installed; found without importing it."""
    spec = find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def nvcc() -> str | None:
    """The CUDA compiler: of CUDA_HOME, else on the path, else in its usual place."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def torch_has_cuda() -> bool:
    torch = torch_folder()
    return torch is not None and (torch / "lib" / "libtorch_cuda.so").exists()


def architecture_flags() -> list[str]:
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    newest = ARCHITECTURES[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]  # newer devices translate this one


def build(out: Path, *, cuda: bool) -> None:
    """Compile and link into `out`.

    Raises:
        RuntimeError: torch or a compiler is missing, or a compiler fails; what it said is printed.
    """
    torch, compiler = torch_folder(), os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if torch is None:
        raise RuntimeError("the compiled ops need torch to build: install it first, and use pip's --no-build-isolation")
    if compiler is None:
        raise RuntimeError("the compiled ops need a C++ compiler: install g++, or name one in CXX")
    cuda_compiler = nvcc()
    if cuda and cuda_compiler is None:
        raise RuntimeError("the CUDA ops need nvcc: install the CUDA toolkit and set CUDA_HOME to it")
    include, lib = torch / "include", torch / "lib"
    flags = [STABLE_ABI, f"-DRMFAST_SOURCE={source_number()}", f"-isystem{include}"]
    flags += ["-DRMFAST_CUDA"] if cuda else []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        objects, linker = [], [compiler]
        for source in sorted(HERE.glob("*.cpp")):
            flags = [
                STABLE_ABI,
                f"-DRMFAST_SOURCE={source_number()}",
                f"-isystem{include}",
                *(["-DRMFAST_CUDA"] if cuda else []),
            ]
            objects.append(str(Path(folder, source.stem + ".o")))
            _run([compiler, *CXX, *flags, "-c", str(source), "-o", objects[-1]])
        if cuda:
            assert cuda_compiler is not None
            for source in sorted(HERE.glob("*.cu")):
                objects.append(str(Path(folder, source.stem + ".cuda.o")))
                _run([cuda_compiler, *NVCC, *architecture_flags(), "-c", str(source), "-o", objects[-1]])
            linker = [cuda_compiler, f"-ccbin={compiler}"]  # which knows where its runtime is
        linked = str(Path(folder, out.name))
        _run([*linker, "-shared", *objects, "-o", linked, f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10"])
        shutil.move(linked, out)


def source_number() -> int:
    """A number that tells versions of the sources apart; rmfast.kernels.compiled compares it with the library's."""
    digest = hashlib.blake2b(digest_size=7)
    for path in sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".cu", ".h")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest())


def _run(command: list[str]) -> None:
    if subprocess.run(command).returncode:
        raise RuntimeError(f"failed: {' '.join(command)}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or set(sys.argv[2:]) - {"--cuda"}:
        sys.exit(__doc__)
    try:
        build(Path(sys.argv[1]).resolve(), cuda="--cuda" in sys.argv)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
