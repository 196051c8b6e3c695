"""What short runs of every task compute, to the bit: shows that a change of the code's structure changed no number.

    python benchmarks/same_numbers.py [--only NAME ...] [--against FILE] [--within X] [--update] [--out FILE]

Each job trains a tiny model in fp32 on the CPU: the reward task with every objective, the meta task, ensembles, two
ranks under DDP and FSDP, megatron-core's layouts (stand-ins for its CUDA calls, tests/megatron). It runs twice, whole
and killed in the middle and resumed: the two have to agree bit for bit. The values of metrics.jsonl and eval.jsonl and
a hash of the weights (an ensemble: of its scores too) are compared with benchmarks/results/same_numbers.json, or with
the FILE that another commit wrote with --out. Bits hold for one kind of processor and version of torch; --within X
allows a relative difference, for a change that may round otherwise. --update writes that file.
"""

import argparse
import hashlib
import json
import platform
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from safetensors import safe_open  # noqa: E402

from tests.runs import Case, arguments, launch, read_lines, text, write_model, write_rows  # noqa: E402

REFERENCE = ROOT / "benchmarks" / "results" / "same_numbers.json"
STEPS = 20
KILLED = "step:12"
TIMED = {"step_seconds", "tokens_per_second", "pairs_per_second", "tflops", "mfu"}
TIMED |= {"memory_gib", "memory_reserved_gib", "alloc_retries"}

SWAV: dict[str, object] = {
    "objective__contrastive": "swav", "objective__on": "difference", "objective__queue": 30,
    "objective__prototypes": 8, "objective__lm": 0.1, "data__tokens_per_pack": 120,
}  # fmt: skip
META: dict[str, object] = {"task": "meta", "meta__prompts_per_step": 4, "meta__eta": 0.01, "meta__k": 3}
ENSEMBLE: dict[str, object] = {"task": "ensemble", "ensemble__members": 3, "run__max_steps": 8}
MEGATRON: dict[str, object] = {"parallel__engine": "megatron", "model__dropout": 0.0}


@dataclass(frozen=True)
class Job:
    """Keys of the config beyond those that all jobs share, the number of ranks, and where the second run is killed."""

    keys: Mapping[str, object] = field(default_factory=dict)
    ranks: int = 1
    kill: str = KILLED


JOBS = {
    "reward": Job(),
    "reward center": Job({"objective__center": 0.01, "optim__weight_decay": 0.1, "model__heads": 2}),
    "reward lm": Job({"objective__lm": 0.5}),
    "reward top layers": Job({"model__top_layers": 1}),
    "reward simcse": Job({"objective__contrastive": "simcse", "objective__temperature": 0.5}),
    "reward swav": Job(SWAV),
    "meta": Job(META),
    "meta swav": Job(META | SWAV),
    "ensemble full": Job(ENSEMBLE | {"ensemble__mode": "full"}),
    "ensemble heads": Job(ENSEMBLE | {"ensemble__mode": "heads", "model__dropout": 0.0}, kill="step:7"),
    "ddp": Job({"parallel__data": "ddp"}, ranks=2),
    "ddp swav": Job(SWAV | {"parallel__data": "ddp"}, ranks=2),
    "fsdp": Job({"parallel__data": "fsdp"}, ranks=2),
    "fsdp meta": Job(META | {"parallel__data": "fsdp"}, ranks=2),
    "megatron tp2": Job(MEGATRON | {"parallel__tensor": 2}, ranks=2),
    "megatron pp2": Job(MEGATRON | {"parallel__pipeline": 2, "objective__lm": 0.5}, ranks=2),
}


def write_inputs(folder: Path) -> None:
    """A model of four layers, pairs with every kind of column, held-out pairs and prompts with samples."""
    write_model(folder / "model", layers=4)
    ranked = {"prompt": "the cat ran", "responses": [" home", " by the sea", " on a mat"]}
    strong = {"prompt": "a dog", "chosen": " ran", "rejected": " sat", "margin": 0.5, "weight": 2.0, "target": 0.8}
    write_rows(folder / "rows.jsonl", 60, extra=[ranked, strong])
    pairs = read_lines(write_rows(folder / "eval.jsonl", 10, seed=1))
    draw = random.Random(2)
    rows = [{"prompt": pair["prompt"], "responses": [" " + text(draw, 2, 6) for _ in range(4)]} for pair in pairs]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command(folder: Path, run: str, job: Job) -> list[str]:
    keys: dict[str, object] = {
        "model__path": folder / "model",
        "model__dropout": 0.1,
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 8,
        "data__tokens_per_pack": 96,
        "run__dir": folder / run,
        "run__max_steps": STEPS,
        "run__tensorboard": False,
        "optim__lr": 1e-3,
        "eval__every": 6,
        "checkpoint__every": 5,
        "parallel__timeout_minutes": 2,
    }
    if job.keys.get("task") == "meta":
        keys["meta__data"] = folder / "samples.jsonl"
    return arguments(**(keys | dict(job.keys)))


def run_jobs(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Runs jobs, whole and killed; what each computed. Exits where a job fails or does not resume to the same bits."""
    write_inputs(folder)
    found = {}
    for name in names:
        job = JOBS[name]
        whole, killed = command(folder, f"{name} whole", job), command(folder, f"{name} killed", job)
        cases = [Case("whole", whole), Case("killed", killed, job.kill), Case("resumed", killed)]
        logs = folder / f"{name} logs"
        codes = launch(logs, cases, ranks=job.ranks)
        if any(codes["whole"] + codes["resumed"]) or -9 not in codes["killed"]:
            log = next(log for log in (logs / "whole-0.log", logs / "resumed-0.log") if log.is_file())
            sys.exit(f"{name}: exit codes {codes}\n{log.read_text(encoding='utf-8')}")
        found[name] = numbers(folder / f"{name} whole")
        if numbers(folder / f"{name} killed") != found[name]:
            sys.exit(f"{name}: the resumed run computed something else")
        print(f"{name}: {len(found[name]['values'])} files of values, the resumed run agrees", flush=True)
    return found


def numbers(run: Path) -> dict[str, Any]:
    """Every value that a run logged but for its times, by file, and a hash of all weights and scores that it wrote."""
    values = {}
    for path in sorted([*run.rglob("metrics.jsonl"), *run.rglob("eval.jsonl")]):
        lines = read_lines(path)
        columns = sorted({key for line in lines for key in line} - TIMED)
        values[str(path.relative_to(run))] = {key: [line.get(key) for line in lines] for key in columns}
    digest = hashlib.sha256()
    for path in sorted(run.rglob("model/*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                digest.update(f"{path.relative_to(run)} {name}".encode() + file.get_tensor(name).numpy().tobytes())
    for path in sorted(run.rglob("*.npz")):
        with np.load(path) as arrays:
            for name in sorted(arrays.files):
                if arrays[name].dtype.kind == "U":
                    continue  # labels and keys hold paths
                digest.update(f"{path.relative_to(run)} {name}".encode() + arrays[name].tobytes())
    return {"values": values, "weights": digest.hexdigest()}


def apart(new: Mapping[str, Any], old: Mapping[str, Any]) -> tuple[float, str]:
    """The largest relative difference of two jobs' values, and where; infinite where one has what the other lacks."""
    worst = (0.0, "")
    for file in sorted(new["values"].keys() | old["values"].keys()):
        ours, theirs = new["values"].get(file, {}), old["values"].get(file, {})
        for key in sorted(ours.keys() | theirs.keys()):
            a, b = ours.get(key), theirs.get(key)
            if a == b:
                continue
            if a is None or b is None or len(a) != len(b):
                return float("inf"), f"{file}: {key} is in one alone"
            for step, (x, y) in enumerate(zip(a, b, strict=True)):
                number = isinstance(x, int | float) and isinstance(y, int | float)
                far = abs(x - y) / max(abs(y), 1.0) if number else float(x != y) * float("inf")
                worst = max(worst, (far, f"{file}: {key}, line {step + 1}: {x} was {y}")) if x != y else worst
    return worst


def write(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    return {"torch": torch.__version__, "processor": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Entry point; 1 where a number differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME", help=f"of {', '.join(JOBS)}")
    add("--against", type=Path, default=REFERENCE, metavar="FILE", help="default: %(default)s")
    add("--within", type=float, metavar="X", help="relative difference that is allowed (default: none, the same bits)")
    add("--update", action="store_true", help="write the reference file; with --only these jobs of it")
    add("--out", type=Path, metavar="FILE", help="write this file in place of it, and compare nothing")
    args = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="numbers-"))
    try:
        found = run_jobs(folder, args.only)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if args.out or args.update:
        path = args.out or REFERENCE
        kept = json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.is_file() else {}
        write(path, {"machine": machine(), "jobs": kept | found})
        return 0
    reference = json.loads(args.against.read_text(encoding="utf-8"))
    if reference["machine"] != machine():
        print(f"note: {args.against.name} was made on {reference['machine']}, this is {machine()}")
    bad = 0
    for name, job in found.items():
        far, where = apart(job, reference["jobs"][name])
        same = not far and job["weights"] == reference["jobs"][name]["weights"]
        allowed = same or (args.within is not None and far <= args.within)
        print(f"{name}: {'the same bits' if same else f'{far:.1e} apart {where}' if far else 'other weights'}")
        bad += not allowed
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
