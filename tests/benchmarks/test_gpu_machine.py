"""What benchmarks/gpu finds of a machine: packages that it lacks, wheels that mend it, memory that can grow."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import check, wheels
from benchmarks.gpu.__main__ import main
from tests.benchmarks.test_gpu import ROOT, settings
from tests.benchmarks.test_gpu_plan import real_plan

LEAVES_OUT = ("datasets", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "zstandard", "trl",
              "liger_kernel", "gguf", "megatron", "dill", "multiprocess")  # fmt: skip
BLOCKER = """
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["LEFT_OUT"].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def lacking_on(folder: Path, monkeypatch: pytest.MonkeyPatch, *left_out: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(BLOCKER)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("LEFT_OUT", " ".join(left_out))
    return check.missing(settings(folder, tiny=False, device="cuda"))


def test_a_part_is_left_out_for_its_own_needs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    lacking = lacking_on(tmp_path, monkeypatch, *LEAVES_OUT)
    assert "pydantic" in lacking["training"] and "datasets" in lacking["trl"] and "liger_kernel" in lacking["liger"]
    parts = real_plan(tmp_path)
    runs = {p.label.split("/")[0] for p in parts if not check.blocked(p, lacking)}
    assert runs == {"suite", "kernels", "tiles"}
    assert {p.stage for p in parts if check.blocked(p, lacking)} == {"suite", "steps"}
    (one,) = (p for p in parts if p.label == "suite/test_rms_norm")
    assert not check.blocked(one, lacking)
    (megatron,) = (p for p in parts if p.label == "suite/test_one_process")
    assert check.blocked(megatron, {"megatron": lacking["megatron"]}) == ["megatron"]  # said, with its reason


@pytest.mark.slow
def test_with_what_is_carried_nothing_of_the_first_call_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("triton", "trl"):
        pytest.importorskip(module)
    carried = {name.removesuffix("-core").replace("-", "_") for name in wheels.CARRIED}
    every = "\n".join(words for name, words in check.IMPORTS.items() if name != "liger")  # no package of the tests
    monkeypatch.setattr(check, "IMPORTS", {"every": every})  # in one process
    assert not lacking_on(tmp_path, monkeypatch, *(name for name in LEAVES_OUT if name not in carried))
    assert set(LEAVES_OUT) - carried == {"gguf"}  # which no part of it needs


STAND_IN = """
import os, types
card = types.SimpleNamespace(name="card", major=9, minor=0, total_memory=2**36)
class cuda:
    is_available = staticmethod(lambda: True)
    get_device_properties = staticmethod(lambda _: card)
    taken = "expandable_segments:True" in os.environ.get("PYTORCH_ALLOC_CONF", "") and DRIVER
    memory_snapshot = staticmethod(lambda: [{"is_expandable": cuda.taken}])
uint8 = None
empty = lambda *_, **__: None
"""


@pytest.mark.parametrize("driver", [True, False])
def test_the_probe_says_whether_segments_can_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool
) -> None:
    """A torch that stands in for one with a device, and a driver that can map memory behind a segment, or cannot."""
    (tmp_path / "torch.py").write_text(STAND_IN.replace("DRIVER", str(driver)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")  # what the user set for others
    found = check.probe()
    assert found == {"cuda": True, "name": "card", "capability": 90, "memory_gib": 64.0, "expandable": driver}
    lines = check.report(settings(tmp_path), found, [])
    assert any("expandable_segments:True has no effect" in line for line in lines) != driver


def test_wheels_are_those_of_constraints_for_one_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        (Path(command[command.index("--dest") + 1]) / "pydantic-2-py3-none-any.whl").write_bytes(b"x" * 2**20)
        return subprocess.CompletedProcess(command, len(asked) - 1, "", "ERROR: no match for trl")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    (tmp_path / "pydantic-1-py3-none-any.whl").touch()
    printed = wheels.download(tmp_path)
    assert "12 wheels for Python 3.12 on Linux x86-64, 1.0 MiB" in printed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["pydantic-2-py3-none-any.whl"]
    (command,) = asked
    pins = [word for word in command if "==" in word]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert [pin for pin in pins if pin not in constraints] == ["liger-kernel==0.8.5"] and len(pins) == 12
    assert {"--no-deps", "3.12", "cp", "manylinux_2_17_x86_64"} <= set(command)
    assert main(["--wheels", str(tmp_path)]) == 2
