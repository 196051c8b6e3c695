"""Package metadata. Bounds are loose and true; the exact versions that CI installs stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

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
    package_data={"rmfast": ["py.typed"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17",
        "datasets>=4.0",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pyarrow>=15",
        "pydantic>=2.7",
        "PyYAML>=6.0",
        "safetensors>=0.4.3",
        "tokenizers>=0.21",
        "tensorboard>=2.16",
        "zstandard>=0.22",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100"],
        "dev": ["ruff>=0.9", "mypy>=1.14", "import-linter>=2.1", "types-PyYAML"],
        "bench": ["trl>=1.16", "accelerate>=1.4"],
        "gguf": ["gguf>=0.10", "accelerate>=1.4"],
    },
    entry_points={"console_scripts": ["rmfast = rmfast.cli:main"]},
)
