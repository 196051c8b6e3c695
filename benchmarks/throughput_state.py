"""What `train_throughput.py` keeps of the modes that ran: why some did not, and what a killed call left behind."""

import hashlib
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NO_MEMORY = r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate memory"


class ModeFailed(Exception):
    """A mode did not run to its end; the message says why in one line."""


def why_it_failed(code: int, written: str) -> str:
    """One line: that memory ran out, or the last that the mode wrote, without this machine's paths."""
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    if re.search(NO_MEMORY, written):
        found = next(line for line in lines if re.search(NO_MEMORY, line))
        return f"does not fit: {shorten(found)}"
    if code == -9:
        return "killed (signal 9; memory of the machine?)"
    return f"ended with code {code}: {shorten(lines[-1]) if lines else 'it wrote nothing'}"


def shorten(line: str) -> str:
    """A line without folders, cut at 240 characters."""
    return re.sub(r"(?<![\w.])/[^\s:'\"]*/", "", line)[:240]


def digests(ids: list[Any], pairs: int) -> list[str]:
    """A digest of the token ids of each step's `pairs` pairs, whatever their order in the step."""
    steps = [sorted(ids[i : i + pairs]) for i in range(0, len(ids), pairs)]
    return [hashlib.sha256(json.dumps(step).encode()).hexdigest()[:16] for step in steps]


def same_pairs(mode: str, steps: list[str], first: str, others: list[str]) -> None:
    """Compare the digests of a mode's steps with those of the first mode that ran.

    Raises:
        ModeFailed: a step did not hold the pairs that it held there.
    """
    if steps != others:
        at = next((i for i, (a, b) in enumerate(zip(steps, others, strict=False), 1) if a != b), "count")
        raise ModeFailed(f"{mode} did not train on the same token ids as {first} (first difference: step {at})")


def fingerprint(package: str, *files: Path) -> str:
    """Digest of the code of "rmfast" or "benchmarks" (also where there is no commit, or files differ from it) and of
    `files`."""
    found = hashlib.sha256()
    kinds = (".py", ".cu", ".cpp", ".so")
    sources = (ROOT / package).rglob("*") if package == "rmfast" else (ROOT / package).glob("*.py")
    for path in (*sorted(path for path in sources if path.suffix in kinds), *files):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Known:
    """What an earlier call measured: rounds by mode, why modes failed, and what the device did."""

    rounds: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    limits: list[dict[str, Any]] = field(default_factory=list)


def earlier(path: Path | None, same: dict[str, Any], source: dict[str, Any]) -> Known:
    """What a call on the same job left in `path` before it came to its end.

    Modes of rmfast count only where its code was this one; the others run none of it between two marks of the clock.
    Memory that ran out once would run out again; any other failure is tried again.
    """
    if path is None or not path.is_file():
        return Known()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return Known()
    if found.get("complete", True) or any(found.get(name) != value for name, value in same.items()):
        return Known()

    def counts(mode: str, origin: dict[str, Any]) -> bool:
        return not mode.startswith("rmfast") or origin.get("rmfast") == source["rmfast"]

    rounds = {mode: [run for run in runs if counts(mode, run["source"])] for mode, runs in found["rounds"].items()}
    failed = {mode: why for mode, why in found["failed"].items()
              if "does not fit" in why and counts(mode, found["source"])}  # fmt: skip
    return Known(rounds, failed, found["limits"])


def end_of(done: subprocess.CompletedProcess[str]) -> str:
    """The end of what a process wrote."""
    return f"{done.stdout[-1000:]}\n{done.stderr[-6000:]}"
