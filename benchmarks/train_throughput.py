"""A whole training step: seconds, tokens and pairs a second, MFU and memory, beside TRL and packed transformers.

    python benchmarks/train_throughput.py --model llama-1b --lengths hh --device cuda --json OUT [--breakdown]

Each mode trains the same weights on the same pairs of each step with the same optimizer, in a fresh interpreter; the
modes take turns, rmfast first and the slowest last. Two steps warm up, figures are medians over the others; --breakdown
profiles one more step. A mode that fails is named ("does not fit" where memory runs out), and the others go on; --json
is written after each, and the same call again goes on where it was killed.
Pairs have random tokens and the lengths of a named distribution, or come from `--data FILE`. bf16 with fp32 weights on
a GPU, fp32 on a CPU. The device's copy and matrix product are timed before and after.

modes   trl         its defaults: padded micro-batches in random order, gradient checkpointing
        trl-no-checkpointing    the same without checkpointing
        trl-tuned   no checkpointing, and each step's pairs sorted by length before they are cut into micro-batches
        trl-liger   trl-tuned with Liger's kernels (GPU)
        hf-packed   transformers' model over packs without padding, every sequence whole: no prefix is shared (what
                    OpenRLHF and ms-swift do where packing is asked for)
        rmfast-graphs   rmfast with parallel.cuda_graphs (GPU)
        rmfast      the run of `task: reward` with its defaults, its choice of attention included
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from lengths import DISTRIBUTIONS
from throughput_figures import FLOPS, breakdowns, differences, figures, print_result
from throughput_inputs import SHAPES, prepare
from throughput_state import ModeFailed, digests, earlier, end_of, fingerprint, same_pairs, why_it_failed
from train_throughput_worker import PROFILED, Mode
from vs_trl import WARM_UP, machine
from vs_trl_inputs import SMOLLM2
from vs_trl_worker import Job

from rmfast.errors import UserError

MODES = get_args(Mode)
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # what rmfast/train.py sets, and TRL's users do not
# Of a 1B model a padded token takes 2 MB without checkpointing: 8 pairs of the longest, 86,656 tokens, fill no GPU.
MICRO_BATCH = {"long": 2}


def run_mode(mode: str, job: Job, folder: Path, *, breakdown: bool, limit: float | None) -> dict[str, Any]:
    """One mode in a fresh interpreter; digests of its steps in place of their token ids.

    Raises:
        ModeFailed: it did not run to its end, or not within `limit` seconds.
    """
    job_file, out = folder / "job.json", folder / f"{mode}.json"
    job_file.write_text(json.dumps(asdict(job)))
    out.unlink(missing_ok=True)
    threads = {} if job.threads is None else {n: str(job.threads) for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    worker = str(Path(__file__).with_name("train_throughput_worker.py"))
    command = [sys.executable, worker, str(job_file), mode, str(out), *(["breakdown"] if breakdown else [])]
    given = os.environ | threads | hidden | offline | (ALLOCATOR if mode.startswith("rmfast") else {})
    try:
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as over:
        raise ModeFailed(f"did not end within {limit:.0f} s") from over
    if done.returncode or not out.is_file():
        print(end_of(done), file=sys.stderr, flush=True)
        raise ModeFailed(why_it_failed(done.returncode, end_of(done)))
    result = json.loads(out.read_text())
    return result | {"steps": digests(result.pop("ids"), job.pairs_per_step)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Arguments, checked as far as they can be without reading the data.

    Raises:
        UserError: they cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    smaller = ", ".join(f"{pairs} for --lengths {name}" for name, pairs in MICRO_BATCH.items())
    add("--model", default="llama-1b" if cuda else "tiny", help=f"{', '.join(SHAPES)}, or a Hugging Face folder")
    add("--lengths", choices=list(DISTRIBUTIONS), default="hh" if cuda else "tiny", help="(default here: %(default)s)")
    add("--data", help="preference pairs instead of random ones: a file, folder or datasets name")
    add("--modes", nargs="+", choices=MODES, help="ratios are to the last (default: all that can run)")
    add("--json", type=Path, help="write everything that was measured to this file")
    add("--breakdown", action="store_true", help="profile a step of each mode, after those that are timed")
    add("--limit", type=float, help="seconds that a mode may take (default: no limit)")
    add("--steps", type=int, default=7, help=f"optimizer steps, at least {WARM_UP + 1} (default: %(default)s)")
    add("--pairs-per-step", type=int, default=128, help="global batch (default: %(default)s)")
    add("--micro-batch", type=int, help=f"pairs of TRL's padded batches, of all its modes (default: 8; {smaller})")
    add("--tokens-per-pack", type=int, default=16384, help="of rmfast and hf-packed (default: %(default)s)")
    add("--max-length", type=int, help="longer pairs are left out (default: the distribution's; 2048 for --data)")
    add("--lr", type=float, default=1e-5, help="peak of the linear schedule (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu", help="(default here: %(default)s)")
    add("--threads", type=int, help="CPU threads of each run (default: torch's choice)")
    add("--rounds", type=int, default=1, help="runs of each mode (default: %(default)s)")
    add("--seed", type=int, default=0, help="of lengths, tokens and weights")
    args = parser.parse_args(arguments)
    if args.micro_batch is None:
        args.micro_batch = 8 if args.data else MICRO_BATCH.get(args.lengths, 8)
    least = {"steps": WARM_UP + 1, "pairs_per_step": 1, "micro_batch": 1, "rounds": 1, "max_length": 2}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')}: must be at least {low}, got {value}")
    if args.pairs_per_step % args.micro_batch:
        raise UserError(f"--micro-batch: {args.micro_batch} does not divide --pairs-per-step {args.pairs_per_step}")
    if args.device == "cuda" and not cuda:
        raise UserError("--device cuda: torch finds no CUDA device here")
    if args.json and not args.json.parent.is_dir():
        raise UserError(f"--json: {args.json.parent} is not a folder")
    lacking = {mode: why for mode in MODES if (why := unavailable(mode, args.device))}
    for mode in args.modes or []:
        if mode in lacking:
            raise UserError(f"--modes {mode}: {lacking[mode]}")
    args.modes = args.modes or [mode for mode in MODES if mode not in lacking]
    return args


def limits_here(device: str) -> dict[str, Any]:
    """What the device does now: bytes/s of a copy, FLOP/s of a matrix product (small ones on a CPU)."""
    root = str(Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.append(root)  # last: a package of Hugging Face's is called kernels too
    from benchmarks.kernels.run import limits

    place = torch.device(device)
    found = limits(place, small=device == "cpu")
    if device == "cuda":
        torch.cuda.empty_cache()  # the modes' processes need the memory
    return found


def unavailable(mode: str, device: str) -> str | None:
    """Why a mode cannot run here, or None."""
    if mode.startswith("trl") and importlib.util.find_spec("trl") is None:
        return "the package trl is not installed"
    if mode == "trl-liger" and device != "cuda":
        return "Liger's kernels need a GPU"
    if mode == "rmfast-graphs" and device != "cuda":
        return "CUDA graphs need a GPU"
    if mode == "trl-liger" and importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


def compare(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run all modes and print what came out; everything that was measured."""
    about = machine(args.device)
    fallback = 2048 if args.data else DISTRIBUTIONS[args.lengths].longest
    args.max_length = args.max_length or fallback
    name, data, step = prepare(args, scratch, PROFILED if args.breakdown else 0)
    print(
        f"{name}; {data['rows']} pairs, common prefix {data['mean_prefix']:.0f} tokens, "
        f"chosen {data['mean_chosen']:.0f}, rejected {data['mean_rejected']:.0f}, longest {data['longest']}; "
        f"TRL's micro-batches: {args.micro_batch} pairs, packs: {args.tokens_per_pack:,} tokens"
    )
    jobs = jobs_of(args, scratch)
    same = what_is_measured(args, about, name, scratch)
    source = {"commit": about["commit"], "rmfast": fingerprint("rmfast")}
    known = earlier(args.json, same, source)
    ceilings = [*known.limits, limits_here(args.device)]
    results: dict[str, list[dict[str, Any]]] = {mode: known.rounds.get(mode, []) for mode in args.modes}
    failed = known.failed

    def report(*, complete: bool) -> dict[str, Any]:
        done = {mode: runs for mode, runs in results.items() if runs}
        result = about | same | {
            "complete": complete,
            "source": source,
            "data": data,
            "step": step,
            "summary": figures(done, ceilings, step, args),
            "failed": failed,
            "attention": {mode: runs[0]["attention"] for mode, runs in done.items() if "attention" in runs[0]},
            "flops_counted": FLOPS,
            "limits": ceilings,
            "largest_loss_difference": differences(done),
            "breakdown": breakdowns(done),
            "rounds": done,
        }  # fmt: skip
        if args.json:
            write(args.json, result)
        return result

    first = base_of(args.modes)
    order = [first, *(mode for mode in reversed(args.modes) if mode != first)]
    for number, mode in ((number, mode) for number in range(args.rounds) for mode in order):
        if mode in failed:
            continue
        where = f"round {number + 1}/{args.rounds}  {mode:<22}"
        if len(results[mode]) > number:
            print(f"{where} measured by an earlier call", flush=True)
            continue
        try:
            result = run_mode(mode, jobs[mode], scratch, breakdown=args.breakdown, limit=args.limit)
            for other in [m for m in order if results[m]][:1]:
                same_pairs(mode, result["steps"], other, results[other][0]["steps"])
            results[mode].append(result | {"source": source})
            print(f"{where} {median(result['wall_seconds'][WARM_UP:]):.3f} s/step", flush=True)
        except ModeFailed as error:
            failed[mode] = str(error)
            print(f"{where} {error}", flush=True)
        report(complete=False)
    ceilings.append(limits_here(args.device))
    result = report(complete=True)
    print_result(result, args)
    if not results[first]:
        raise RuntimeError(f"{first}: {failed[first]}")
    return result


def jobs_of(args: argparse.Namespace, scratch: Path) -> dict[str, Job]:
    """What each mode is given."""
    names = ("pairs_per_step", "micro_batch", "tokens_per_pack", "max_length", "lr", "device", "threads")
    plain = Job(
        model=str(scratch / "model"),
        rows=str(scratch / "rows.jsonl"),
        scratch=str(scratch),
        steps=args.steps + (PROFILED if args.breakdown else 0),
        **{n: getattr(args, n) for n in names},
    )
    ordered = replace(plain, rows=str(scratch / "sorted.jsonl"))
    return {mode: ordered if mode in ("trl-tuned", "trl-liger") else plain for mode in MODES}


def what_is_measured(args: argparse.Namespace, about: dict[str, Any], name: str, scratch: Path) -> dict[str, Any]:
    """What a call on the same job has in common with this one, whatever rmfast's code was then."""
    shape = json.loads((scratch / "model" / "config.json").read_text())
    names = ("steps", "pairs_per_step", "micro_batch", "tokens_per_pack", "max_length", "lr", "device", "threads")
    settings = {n: getattr(args, n) for n in (*names, "rounds", "seed", "lengths", "breakdown")}
    return {key: about[key] for key in ("device", "python", "versions")} | {
        "benchmarks": fingerprint("benchmarks", scratch / "rows.jsonl"),
        "model": name,
        "shape": {key: shape.get(key) for key in SMOLLM2},
        "settings": settings | {"warm_up": WARM_UP, "data": Path(args.data).name if args.data else None},
    }  # fmt: skip


def base_of(modes: list[str]) -> str:
    """The mode that runs first and without which a comparison is worth nothing."""
    return "rmfast" if "rmfast" in modes else modes[-1]


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file at once, so that a call that is killed leaves a whole one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 2 for bad input, 1 if rmfast failed (without it: the last mode)."""
    try:
        args = parse(arguments)
        with tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
            compare(args, Path(scratch))
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
