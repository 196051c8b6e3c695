"""Modes of compare.py in processes: why some did not run to their end, and what a killed call left behind."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.origin import ROOT, write_json
from benchmarks.steps.worker import Job

NO_MEMORY = r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate memory"
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # what rmfast/train.py sets, and TRL's users do not


class ModeFailed(Exception):
    """A mode did not run to its end; the message says why in one line."""


def run_mode(job: Job, limit: float | None = None) -> dict[str, Any]:
    """One mode in a fresh interpreter.

    Raises:
        ModeFailed: it did not run to its end, or not within `limit` seconds.
    """
    job_file, out = Path(job.scratch) / "job.json", Path(job.scratch) / f"{job.mode}.json"
    write_json(job_file, asdict(job))
    out.unlink(missing_ok=True)
    # The paths of this process and no other: a package of Hugging Face's is called kernels, as a folder here is.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if job.threads is not None:
        env |= {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if job.device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": ""}
    if job.mode.startswith("rmfast"):
        env |= ALLOCATOR
    command = [sys.executable, "-P", "-m", "benchmarks.steps.worker", str(job_file), str(out)]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as over:
        raise ModeFailed(f"did not end within {limit:.0f} s") from over
    if done.returncode or not out.is_file():
        written = f"{done.stdout[-1000:]}\n{done.stderr[-6000:]}"
        print(written, file=sys.stderr, flush=True)
        raise ModeFailed(why_it_failed(done.returncode, written))
    return json.loads(out.read_text(encoding="utf-8"))


def why_it_failed(code: int, written: str) -> str:
    """One line: that memory ran out, or the last that the mode wrote, without this machine's paths."""
    lines = [line.strip() for line in written.splitlines() if line.strip()] or ["it wrote nothing"]
    short = [re.sub(r"(?<![\w.])/[^\s:'\"]*/", "", line)[:240] for line in lines]
    for line in short:
        if re.search(NO_MEMORY, line):
            return f"does not fit: {line}"
    return "killed (signal 9; memory of the machine?)" if code == -9 else f"ended with code {code}: {short[-1]}"


def check_same_pairs(mode: str, steps: list[str], first: str, others: list[str]) -> None:
    """Compare the digests of a mode's steps with those of the first mode that ran.

    Raises:
        ModeFailed: a step did not hold the pairs that it held there.
    """
    if steps != others:
        at = next((i for i, (a, b) in enumerate(zip(steps, others, strict=False), 1) if a != b), "count")
        raise ModeFailed(f"{mode} did not train on the same token ids as {first} (first difference: step {at})")


def fingerprint(folder: str, *files: Path) -> str:
    """Digest of a folder's code (where files differ from the commit, or there is none, it says more) and of `files`."""
    found = hashlib.sha256()
    code = sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".cu", ".cpp", ".so"))
    for path in (*code, *files):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


Known = tuple[dict[str, list[dict[str, Any]]], dict[str, str], list[dict[str, Any]]]
"""What an earlier call measured: rounds by mode, why modes failed, and what the device did."""


def earlier(path: Path | None, same: dict[str, Any], source: dict[str, Any]) -> Known:
    """What a call on the same job left in `path` before it came to its end.

    Modes of rmfast count only where its code was this one; the others run none of it between two marks of the clock.
    Memory that ran out once would run out again; any other failure is tried again.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    except ValueError:
        found = {}
    if found.get("complete", True) or any(found.get(name) != value for name, value in same.items()):
        return {}, {}, []

    def counts(mode: str, origin: dict[str, Any]) -> bool:
        return not mode.startswith("rmfast") or origin.get("rmfast") == source["rmfast"]

    rounds = {mode: [run for run in runs if counts(mode, run["source"])] for mode, runs in found["rounds"].items()}
    failed = {mode: why for mode, why in found["failed"].items()
              if "does not fit" in why and counts(mode, found["source"])}  # fmt: skip
    return rounds, failed, found["limits"]
