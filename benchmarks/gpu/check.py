"""What a machine must have before time is spent on it, and what the device is. The check itself uses no package."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import wheels
from benchmarks.gpu.parts import ROOT, Part, Settings, environment
from benchmarks.gpu.results import STAGES, Results
from benchmarks.origin import versions
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
        asked = [sys.executable, "-P", "-c", IMPORTS[name]]
        inside = environment(replace(settings, scratch=Path(scratch)))
        try:
            done = subprocess.run(asked, cwd=ROOT, env=inside, capture_output=True, text=True, timeout=IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            return f"importing takes more than {IMPORT_SECONDS:.0f} s"
    if done.returncode == 0:
        return None
    # Of errors that led to one another the first says what is missing.
    written = (done.stdout + done.stderr).strip().splitlines() or ["it wrote nothing"]
    return next((line for line in written if re.match(r"[\w.]*Error: ", line)), written[-1])


NEEDS = ("cuda", *IMPORTS)
"""What may be missing. Without "trl" or "liger" the modes of training steps that need them are left out; a part is left
out for its own needs alone."""
OF_TINY = ("packages", "tests", "triton", "training")


def missing(settings: Settings) -> dict[str, str]:
    """What is not there, by name; what takes imports is tried side by side."""
    names = OF_TINY if settings.tiny else list(IMPORTS)
    with ThreadPoolExecutor(len(names)) as pool:
        tried = dict(zip(names, pool.map(lambda name: imports(name, settings), names), strict=True))
    device = None if settings.tiny or settings.device == "cuda" else "torch finds no CUDA device"
    return {name: why for name, why in ({"cuda": device} | tried).items() if why}


def blocked(part: Part, lacking: Mapping[str, str]) -> list[str]:
    """The needs of a part that are not there."""
    return [name for name in ("packages", *part.needs) if name in lacking]


def report(settings: Settings, device: dict[str, Any], plan: Sequence[Part]) -> list[str]:
    """What is there, what is missing, which parts that costs and which wheels would mend it."""
    if device["cuda"]:
        lines = [f"device: {device['name']}, sm_{device['capability']}, {device['memory_gib']:.0f} GiB"]
        if device["memory_gib"] < 70 and not settings.tiny:
            lines.append("warning: TRL's llama-1b runs were planned for 80 GB")
        if not device.get("expandable", True):
            lines.append(f"warning: {ALLOCATOR[0]}={EXPANDABLE} has no effect, so rmfast's memory will be in gaps")
    else:
        lines = [f"device: none ({device.get('error', 'torch finds no CUDA device')})"]
    lines += [f"  {name:<14}{settings.lacking.get(name, 'ok')}" for name in NEEDS]
    lines += [f"  {name:<14}{number}" for name, number in versions().items()]
    free = shutil.disk_usage(settings.scratch.parent if settings.scratch.parent.is_dir() else ROOT).free / 2**30
    lines.append(f"  scratch       {settings.scratch}, {free:.0f} GiB free")
    if wanted := wheels.pinned(lacking=True):
        lines.append(f"wheels to carry (--wheels FOLDER downloads them): {' '.join(wanted)}")
    if without := [part.label for part in plan if blocked(part, settings.lacking)]:
        lines.append(f"{len(without)} of {len(plan)} parts cannot run: {', '.join(without)}")
    return lines


def other_origin(results: Results, origin: dict[str, Any]) -> str | None:
    """What tells results that are there from this machine and tree, both named; None where nothing does. A package
    that only one side has is no difference: what needs it is not in the other's results."""
    for stage in STAGES:
        for name, record in results.stage(stage).items():
            here = {key: origin[key] for key in ("device", "size", "commit")} | origin["versions"]
            there = record | record.get("versions", {})
            for key, value in here.items():
                if there.get(key, value) != value:
                    return f"{stage}/{name} is of {key} {there[key]}, this is {value}"
    return None
