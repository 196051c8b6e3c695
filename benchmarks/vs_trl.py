"""TRL's RewardTrainer and rmfast side by side: the same weights, pairs, order and optimizer.

    python benchmarks/vs_trl.py --data FILE --threads 1 --json OUT

Both train on the same token ids (checked), drawn from FILE by seed: preference pairs in TRL's formats, jsonl or any
other source that rmfast reads. Each mode runs in a fresh interpreter, and the modes take turns, so that a busy machine
hurts all alike. The first two steps of every run warm up; the table shows medians over the others, and over rounds.
Modes: trl (its defaults, gradient checkpointing on), trl-no-checkpointing, rmfast. On a CPU all compute in fp32, on a
GPU in bf16 with fp32 weights.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

import torch
from vs_trl_inputs import SMOLLM2, prepare_model, prepare_rows
from vs_trl_worker import Job, Mode

from rmfast.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
MODES = get_args(Mode)
WARM_UP = 2  # steps of a run that are not counted


def run_mode(mode: str, job: Job, folder: Path) -> dict[str, Any]:
    """One mode in a fresh interpreter.

    Raises:
        RuntimeError: it failed; the message holds the end of what it wrote.
    """
    job_file, out = folder / "job.json", folder / f"{mode}.json"
    job_file.write_text(json.dumps(asdict(job)))
    out.unlink(missing_ok=True)
    threads = {} if job.threads is None else {n: str(job.threads) for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).with_name("vs_trl_worker.py")), str(job_file), mode, str(out)]
    done = subprocess.run(command, env=os.environ | threads | hidden | offline, capture_output=True, text=True)
    if done.returncode or not out.is_file():
        raise RuntimeError(f"mode {mode} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(out.read_text())


def summarise(rounds: list[dict[str, Any]], *, pairs: int, sequence_tokens: float) -> dict[str, float | None]:
    """Medians over the rounds of one mode: seconds are medians over the steps that are counted, for one that a compiler
    or a busy machine held up says nothing; tokens are means over them.

    Args:
        pairs: of a step.
        sequence_tokens: of such a step's sequences, prompts repeated. What is computed of them beside padding is
            "real"; sharing prefixes saves the rest.
    """
    wall, cpu = (median(median(r[name][WARM_UP:]) for r in rounds) for name in ("wall_seconds", "cpu_seconds"))
    computed, real = (fmean(rounds[0][name][WARM_UP:]) for name in ("computed_tokens", "real_tokens"))
    reserved = [r["reserved_bytes"] for r in rounds]
    return {
        "pairs_per_second": pairs / wall,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "computed_tokens": computed,
        "padding_share": 1 - real / computed,
        "prefix_share": 1 - real / sequence_tokens,
        "peak_gib": median(r["peak_bytes"] for r in rounds) / 2**30,
        "reserved_gib": None if None in reserved else median(reserved) / 2**30,
    }


def print_curves(losses: dict[str, list[float]]) -> dict[str, float]:
    """The loss of every step, side by side; the largest difference of each mode from the last one."""
    modes = list(losses)
    print("\nstep" + "".join(f"{mode:>22}" for mode in modes))
    for step, values in enumerate(zip(*losses.values(), strict=True), start=1):
        print(f"{step:>4}" + "".join(f"{value:>22.6f}" for value in values))
    last = losses[modes[-1]]
    differences = {m: max(abs(a - b) for a, b in zip(losses[m], last, strict=True)) for m in modes[:-1]}
    for mode, difference in differences.items():
        print(f"largest difference of a loss, {mode} and {modes[-1]}: {difference:.1e}")
    return differences


def print_table(table: dict[str, dict[str, Any]]) -> None:
    """The speed of each mode, and its cost as a multiple of the last mode's."""
    columns = {
        "pairs/s": ("pairs_per_second", "{:.2f}"),
        "CPU s/step": ("cpu_seconds", "{:.3f}"),
        "wall s/step": ("wall_seconds", "{:.3f}"),
        "tokens/step": ("computed_tokens", "{:,.0f}"),
        "padding": ("padding_share", "{:.1%}"),
        "prefix saved": ("prefix_share", "{:.1%}"),
        "peak GiB": ("peak_gib", "{:.2f}"),
    }
    base = list(table)[-1]
    print(f"\n{'':<22}" + "".join(f"{label:>13}" for label in columns) + f"{'CPU ratio':>13}{'wall ratio':>13}")
    for mode, row in table.items():
        ratios = [row[key] / table[base][key] for key in ("cpu_seconds", "wall_seconds")]
        cells = [form.format(row[key]) for key, form in columns.values()] + [f"{ratio:.2f} x" for ratio in ratios]
        print(f"{mode:<22}" + "".join(f"{cell:>13}" for cell in cells))


def machine(device: str) -> dict[str, Any]:
    """Device, versions and commit."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif info.is_file():
        name = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), name
        )
    versions = {}
    for package in ("torch", "triton", "transformers", "trl", "liger_kernel", "accelerate", "rmfast"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": name,
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" where files differ from it; None outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Arguments, checked as far as they can be without reading the data.

    Raises:
        UserError: they cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="preference pairs: a file, folder or datasets name")
    add("--model", help="Hugging Face folder (default: SmolLM2-135M's shape with random weights)")
    add("--json", type=Path, help="write everything that was measured to this file")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="ratios are to the last (default: all)")
    add("--steps", type=int, default=15, help=f"optimizer steps, at least {WARM_UP + 1} (default: %(default)s)")
    add("--pairs-per-step", type=int, default=8, help="global batch (default: %(default)s)")
    add("--micro-batch", type=int, help="pairs of TRL's padded batches (default: --pairs-per-step)")
    add("--tokens-per-pack", type=int, default=16384, help="of rmfast (default: %(default)s)")
    add("--max-length", type=int, default=1024, help="longer pairs are not drawn (default: %(default)s, TRL's)")
    add("--lr", type=float, default=1e-4, help="peak of the linear schedule (default: %(default)s, TRL's)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, help="CPU threads of each run (default: torch's choice)")
    add("--rounds", type=int, default=2, help="runs of each mode (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the rows drawn and of new weights")
    args = parser.parse_args(arguments)
    args.micro_batch = args.micro_batch or args.pairs_per_step
    for name, low in (("steps", WARM_UP + 1), ("pairs_per_step", 1), ("rounds", 1), ("max_length", 2), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')}: must be at least {low}, got {value}")
    if args.micro_batch < 1 or args.pairs_per_step % args.micro_batch:
        raise UserError(f"--micro-batch: {args.micro_batch} does not divide --pairs-per-step {args.pairs_per_step}")
    if not args.lr > 0:
        raise UserError(f"--lr: must be positive, got {args.lr}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here")
    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json: {args.json.parent} is not a folder")
    if args.modes != ["rmfast"] and importlib.util.find_spec("trl") is None:
        raise UserError("the package trl is not installed: pip install 'rmfast[bench]'")
    return args


def compare(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run all modes and print what came out; everything that was measured."""
    about = machine(args.device)  # before the runs: a checkout may move on while they last
    model, rows = scratch / "model", scratch / "rows.jsonl"
    name = prepare_model(args.model, model, args.seed)
    count = args.steps * args.pairs_per_step
    limits = {"max_length": args.max_length, "tokens_per_pack": args.tokens_per_pack}
    data = prepare_rows(args.data, model, rows, count=count, limits=limits, seed=args.seed)
    print(
        f"{name}; {data['rows']} pairs, common prefix {data['mean_prefix']:.0f} tokens, "
        f"chosen {data['mean_chosen']:.0f}, rejected {data['mean_rejected']:.0f}, longest {data['longest']}"
    )
    names = ("steps", "pairs_per_step", "micro_batch", "tokens_per_pack", "max_length", "lr", "device", "threads")
    job = Job(model=str(model), rows=str(rows), scratch=str(scratch), **{n: getattr(args, n) for n in names})
    results: dict[str, list[dict[str, Any]]] = {mode: [] for mode in args.modes}
    for number in range(args.rounds):
        for mode in args.modes:
            result = run_mode(mode, job, scratch)
            results[mode].append(result)
            cpu = median(result["cpu_seconds"][WARM_UP:])
            print(f"round {number + 1}/{args.rounds}  {mode:<22} {cpu:.3f} CPU s/step", flush=True)
    ids = [result.pop("ids") for runs in results.values() for result in runs]
    for other in ids[1:]:
        if other != ids[0]:
            row = next((i for i, (a, b) in enumerate(zip(ids[0], other, strict=False), 1) if a != b), "count")
            raise RuntimeError(f"the trainers did not train on the same token ids (first difference: drawn row {row})")
    differences = print_curves({mode: runs[0]["loss"] for mode, runs in results.items()})
    pairs = args.pairs_per_step
    timed = sum(len(sequence) for row in ids[0][WARM_UP * pairs :] for sequence in row)
    sizes = {"pairs": pairs, "sequence_tokens": timed / (args.steps - WARM_UP)}
    table = {mode: summarise(runs, **sizes) for mode, runs in results.items()}
    print_table(table)
    shape = json.loads((model / "config.json").read_text())
    settings = {n: getattr(args, n) for n in (*names, "rounds", "seed")} | {"warm_up": WARM_UP}
    return about | {
        "model": name,
        "shape": {key: shape.get(key) for key in SMOLLM2},
        "settings": settings | {"data": Path(args.data).name},
        "data": data,
        "summary": table,
        "largest_loss_difference": differences,
        "rounds": results,
    }


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 2 for bad input, 1 for a run that failed."""
    try:
        args = parse(arguments)
        with tempfile.TemporaryDirectory(prefix="vs-trl-") as scratch:
            result = compare(args, Path(scratch))
        if args.json:
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
