"""What a machine must have before time is spent on it, and what the device is. The check itself uses no package."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu import wheels
from benchmarks.gpu.data import ALPACA, HH, RMB
from benchmarks.gpu.parts import ROOT, Call, Cut, Failed, Part, Settings
from benchmarks.gpu.results import STAGES, Results
from benchmarks.gpu.stages.suite import ALONE
from rmfast.environment import ALLOCATOR

EXPANDABLE = "expandable_segments:True"

PROBE = """
import json, torch
cuda = torch.cuda.is_available()
found = {"cuda": cuda, "capability": 0, "memory_gib": 0.0}
if cuda:
    card = torch.cuda.get_device_properties(0)
    found |= {"name": card.name, "capability": 10 * card.major + card.minor, "memory_gib": card.total_memory / 2**30}
    block = torch.empty(2**25, dtype=torch.uint8, device="cuda")
    found["expandable"] = all(segment.get("is_expandable", False) for segment in torch.cuda.memory_snapshot())
print(json.dumps(found))
"""
IMPORTS = {
    "packages": "import rmfast.kernels, benchmarks.lengths",
    "tests": "import pytest, hypothesis, triton",
    "triton": "import triton",
    "training": """
import torch, rmfast.tasks.reward
from transformers import AutoModelForSequenceClassification, LlamaConfig
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, num_labels=1, pad_token_id=0)
model = AutoModelForSequenceClassification.from_config(config)
model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
""",
    "trl": "import accelerate, datasets; from trl import RewardConfig, RewardTrainer",
    "megatron": "import rmfast.parallel.megatron.engine",
    "liger": "import liger_kernel; from transformers.integrations.liger import apply_liger_kernel",
}
"""What is imported by the commands of parts with these needs; "packages" are those of every part. A package that is
there may still fail, by a need of its own: so all are tried, not looked for."""
IMPORT_SECONDS = 120.0


def probe() -> dict[str, Any]:
    """Whether torch finds a CUDA device, and which; asked in another process: this one holds no memory on it.

    "expandable": whether torch takes `PYTORCH_ALLOC_CONF` as training sets it, and the driver can do it: else segments
    are of a fixed size, which torch at most warns of.
    """
    asked = {name: value for name, value in os.environ.items() if name not in ALLOCATOR} | {ALLOCATOR[0]: EXPANDABLE}
    done = subprocess.run([sys.executable, "-c", PROBE], env=asked, capture_output=True, text=True)
    if done.returncode:
        return {"cuda": False, "capability": 0, "memory_gib": 0.0, "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout)


def others(command: Sequence[str] = ("nvidia-smi",)) -> list[str]:
    """Processes that compute on the device, as nvidia-smi shows them; figures taken beside them would be theirs too."""
    if shutil.which(command[0]) is None:
        return []
    asked = [*command, "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def imports(name: str, settings: Settings) -> str | None:
    """Why what `IMPORTS` has under a name cannot be used in the commands' environment, or None."""
    with tempfile.TemporaryDirectory() as scratch:
        call = Call(replace(settings, scratch=Path(scratch), out=Path(scratch)), time.monotonic() + IMPORT_SECONDS)
        try:
            call.run(sys.executable, "-P", "-c", IMPORTS[name])
        except Cut:
            return f"importing takes more than {IMPORT_SECONDS:.0f} s"
        except Failed:  # of errors that led to one another the first says what is missing
            written = "".join(call.written).strip().splitlines()
            return next((line for line in written if re.match(r"[\w.]*Error: ", line)), written[-1])
    return None


def no_device(settings: Settings) -> str | None:
    return None if settings.device == "cuda" else "torch finds no CUDA device"


def no_model(settings: Settings) -> str | None:
    path = settings.model
    if path is None:
        return "give --model: SmolLM2-135M-Instruct, a Hugging Face folder or a .gguf file"
    if path.suffix == ".gguf":
        return None if path.is_file() and find_spec("gguf") else f"{path}: no such file, or gguf is not installed"
    return None if (path / "config.json").is_file() else f"{path}: no Hugging Face folder"


def no_data(settings: Settings) -> str | None:
    if settings.data is None:
        return "give --data: the folder of preference data"
    wanted = [HH, RMB, *(ALPACA.format(split) for split in ("train", "test"))]
    absent = [name for name in wanted if not (settings.data / name).is_file()]
    return f"not in {settings.data}: {', '.join(absent)}" if absent else None


def no_long_prefixes(_: Settings) -> str | None:
    return None if (ROOT / ALONE).is_file() else f"{ALONE}: not in this tree"


NEEDS: dict[str, Callable[[Settings], str | None]] = {
    "cuda": no_device,
    **{name: partial(imports, name) for name in IMPORTS},
    "long prefixes": no_long_prefixes,
    "model": no_model,
    "data": no_data,
}
"""Why something is missing, or None. Without "trl" or "liger" the modes of training steps that need them are left
out; a part is left out for its own needs alone."""
NOT_TINY = ("cuda", "long prefixes", "model", "data", "trl", "liger", "megatron")  # what the tiny size asks for none of


def missing(settings: Settings) -> dict[str, str]:
    """What is not there, by name; what takes imports is tried side by side."""
    names = [name for name in NEEDS if not (settings.tiny and name in NOT_TINY)]
    with ThreadPoolExecutor(len(names)) as pool:
        found = pool.map(lambda name: NEEDS[name](settings), names)
    return {name: why for name, why in zip(names, found, strict=True) if why}


def blocked(part: Part, lacking: dict[str, str]) -> list[str]:
    """The needs of a part that are not there."""
    return [name for name in ("packages", *part.needs) if name in lacking]


def report(
    settings: Settings, device: dict[str, Any], plan: Sequence[Part], lacking: dict[str, str]
) -> tuple[list[str], bool]:
    """What is there, what is missing, which parts that costs and which wheels would mend it; whether nothing is
    missing."""
    if device["cuda"]:
        lines = [f"device: {device['name']}, sm_{device['capability']}, {device['memory_gib']:.0f} GiB"]
        if device["memory_gib"] < 70 and not settings.tiny:
            lines.append("warning: TRL's llama-1b runs were planned for 80 GB")
        if not device.get("expandable", True):
            lines.append(f"warning: {ALLOCATOR[0]}={EXPANDABLE} has no effect, so rmfast's memory will be in gaps")
    else:
        lines = [f"device: none ({device.get('error', 'torch finds no CUDA device')})"]
    lines += [f"  {name:<14}{lacking.get(name, 'ok')}" for name in NEEDS]
    for name in ("torch", "triton", "transformers", "trl", "liger_kernel", "datasets", "pydantic", "numpy"):
        try:
            lines.append(f"  {name:<14}{version(name)}")
        except PackageNotFoundError:
            lines.append(f"  {name:<14}-")
    free = shutil.disk_usage(settings.scratch.parent if settings.scratch.parent.is_dir() else ROOT).free / 2**30
    lines.append(f"  scratch       {settings.scratch}, {free:.0f} GiB free")
    if wanted := wheels.lacking():
        lines.append(f"wheels to carry (--wheels FOLDER downloads them): {' '.join(wanted)}")
    without = [part.label for part in plan if blocked(part, lacking)]
    if without:
        lines.append(f"{len(without)} of {len(plan)} parts cannot run: {', '.join(without)}")
    return lines, not lacking


def commit(given: str | None, root: Path = ROOT) -> str | None:
    """The commit that is measured: as given, or the checkout's, with "-dirty" where files differ from it; None where
    nobody knows."""
    if given:
        return given
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "triton", "transformers", "trl", "liger_kernel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def other_origin(results: Results, origin: dict[str, Any]) -> str | None:
    """What tells results that are there from this machine and tree, both named; None where nothing does. A package
    that only one side has is no difference: what needs it is not in the other's results."""
    for stage in STAGES:
        for name, record in results.stage(stage).items():
            for key in ("device", "size", "commit"):
                if record.get(key, origin[key]) != origin[key]:
                    return f"{stage}/{name} is of {key} {record[key]}, this is {origin[key]}"
            for package, own in origin["versions"].items():
                if record.get("versions", {}).get(package, own) != own:
                    return f"{stage}/{name} is of {package} {record['versions'][package]}, this is {own}"
    return None
