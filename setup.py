"""Package metadata. Bounds are loose and true; the exact versions that make installs stand in constraints.txt.

RMFAST_BUILD_EXT says whether the compiled ops of csrc/ are built: 0 never; 1 for the CPU, and for the GPU where nvcc
and a CUDA torch are there; cuda for both in any case; auto (the default) where nvcc and a CUDA torch are there.
"""

import os
import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildCompiledOps(build_ext):
    """Leaves the work to csrc/build.py."""

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name)).resolve()
        tools = runpy.run_path(str(ROOT / "csrc" / "build.py"))
        tools["build"](out, cuda=ext.cuda)

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"  # of no Python version: it is torch that loads it


def compiled_ops() -> list[Extension]:
    wish = os.environ.get("RMFAST_BUILD_EXT", "auto")
    if wish not in ("0", "1", "cuda", "auto"):
        raise SystemExit(f"RMFAST_BUILD_EXT must be 0, 1, cuda or auto, got {wish!r}")
    script = ROOT / "csrc" / "build.py"
    if wish == "0" or (wish == "auto" and not script.exists()):
        return []
    tools = runpy.run_path(str(script))
    cuda = tools["nvcc"]() is not None and tools["torch_has_cuda"]()
    if wish == "auto" and not cuda:
        return []
    sources = sorted(str(p.relative_to(ROOT)) for p in script.parent.iterdir() if p.suffix in (".cpp", ".cu"))
    extension = Extension("rmfast._C", sources=sources, optional=wish == "auto")
    extension.cuda = cuda or wish == "cuda"
    return [extension]


setup(
    name="rmfast",
    version="0.1.0",
    description="Fast, exact training of reward models from preference data",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # find_packages follows the symlink rmfast/kernels -> ../kernels, so the wheel holds real files.
    packages=find_packages(include=["rmfast", "rmfast.*"]),
    package_data={"rmfast": ["py.typed", "launch/templates/*.sbatch", "report/templates/**/*"]},
    ext_modules=compiled_ops(),
    cmdclass={"build_ext": BuildCompiledOps},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "datasets>=4.0",
        "jinja2>=3.1.6",  # older ones let templates out of the sandbox, and newer transformers refuse them
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pyarrow>=21",  # older ones read parquet's JSON columns as text
        "pydantic>=2.7",
        "PyYAML>=6.0",
        "safetensors>=0.4.3",
        "tokenizers>=0.21",
        "tensorboard>=2.16",
        "zstandard>=0.22",
    ],
    extras_require={
        # Without a GPU the kernels are tested in Triton's interpreter, which up to 3.6 needs an older numpy.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "triton>=3.6; sys_platform == 'linux'",
            "numpy<2.4",
            "openai>=1.60",
            "peft>=0.18",  # adapters are compared with its own
        ],
        "dev": ["ruff>=0.9", "mypy>=1.14", "import-linter>=2.1", "types-PyYAML"],
        "bench": ["trl>=1.16", "accelerate>=1.4"],
        "megatron": ["megatron-core==0.16.1", "psutil"],
        # Typed errors, answers and headers of OpenAI-compatible servers come ready; on bare httpx (which Hugging Face's
        # hub brings anyway) they would be ours to write and keep.
        "judge": ["openai>=1.60"],
        "serve": ["aiohttp>=3.14.5", "prometheus-client>=0.20"],  # older aiohttp waits for heads forever
        "gguf": ["gguf>=0.10", "accelerate>=1.4"],
        "flash": ["flash-attn>=2.7"],  # builds against the torch that is installed: pip needs --no-build-isolation
    },
    entry_points={"console_scripts": ["rmfast = rmfast.cli:main"]},
)
