"""Whole training steps of rmfast, TRL and packed transformers side by side: time, tokens, memory, MFU, losses.

    python -m benchmarks.steps.compare --data FILE --model smollm2-135m --pairs-per-step 8 --threads 1 --json OUT
    python -m benchmarks.steps.compare --model llama-1b --lengths hh --device cuda --json OUT [--breakdown]

Each mode trains the same weights on the same pairs of each step with the same optimizer (checked by the token ids), in
an interpreter of its own; the modes take turns, rmfast first and the slowest last. Two steps warm up, figures are
medians over the others; --breakdown profiles one more step. A mode that fails is named ("does not fit" where memory
runs out), and the others go on; --json is written after each, and the same call again goes on where it was killed.
Pairs have random tokens and the lengths of a named distribution, or are drawn from FILE by seed. bf16 with fp32 weights
on a GPU, fp32 on a CPU. The device's copy and matrix product are timed before and after. The modes are in README.md.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from benchmarks.kernels.timing import limits
from benchmarks.lengths import DISTRIBUTIONS
from benchmarks.origin import origin, write_json
from benchmarks.steps.figures import FLOPS, WARM_UP, Runs, breakdowns, differences, lines, summarise
from benchmarks.steps.inputs import SHAPES, SMOLLM2, prepare
from benchmarks.steps.modes import ModeFailed, check_same_pairs, earlier, fingerprint, run_mode
from benchmarks.steps.worker import PROFILED, Job, Mode
from rmfast.errors import UserError
from rmfast.trainer.flops import peak_flops

MODES = get_args(Mode)
# Of a 1B model a padded token takes 2 MB without checkpointing: 8 pairs of the longest, 86,656 tokens, fill no GPU.
MICRO_BATCH = {"long": 2}
GIVEN = ("pairs_per_step", "micro_batch", "tokens_per_pack", "max_length", "lr", "device", "threads")
LEAST = {"steps": WARM_UP + 1, "pairs_per_step": 1, "micro_batch": 1, "rounds": 1, "max_length": 2, "threads": 1}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
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
    add("--max-length", type=int, help="longer pairs are left out (default: the distribution's; 1024 for --data)")
    add("--lr", type=float, default=1e-5, help="peak of the linear schedule (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu", help="(default here: %(default)s)")
    add("--threads", type=int, help="CPU threads of each run (default: torch's choice)")
    add("--rounds", type=int, default=1, help="runs of each mode (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the pairs and of new weights")
    args = parser.parse_args(arguments)
    if args.micro_batch is None:
        args.micro_batch = min(args.pairs_per_step, 8 if args.data else MICRO_BATCH.get(args.lengths, 8))
    args.max_length = args.max_length or (1024 if args.data else DISTRIBUTIONS[args.lengths].longest)
    for name, low in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')}: must be at least {low}, got {value}")
    if args.pairs_per_step % args.micro_batch:
        raise UserError(f"--micro-batch: {args.micro_batch} does not divide --pairs-per-step {args.pairs_per_step}")
    if not args.lr > 0:
        raise UserError(f"--lr: must be positive, got {args.lr}")
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


def unavailable(mode: str, device: str) -> str | None:
    """Why a mode cannot run here, or None."""
    if mode.startswith("trl") and importlib.util.find_spec("trl") is None:
        return "the package trl is not installed: pip install 'rmfast[bench]'"
    if mode in ("trl-liger", "rmfast-graphs") and device != "cuda":
        return "Liger's kernels need a GPU" if mode == "trl-liger" else "CUDA graphs need a GPU"
    if mode == "trl-liger" and importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


def limits_here(device: str) -> dict[str, Any]:
    """What the device does now: bytes/s of a copy, FLOP/s of a matrix product (small ones on a CPU)."""
    found = limits(torch.device(device), small=device == "cpu")
    if device == "cuda":
        torch.cuda.empty_cache()  # the modes' processes need the memory
    return found


def compare(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run all modes and print what was measured; all of it."""
    about = origin(args.device)  # before the runs: a checkout may move on while they last
    extra = PROFILED if args.breakdown else 0
    name, data, step = prepare(args, scratch, warm_up=WARM_UP, extra=extra)
    print(
        f"{name}; {data['rows']} pairs, common prefix {data['mean_prefix']:.0f} tokens, "
        f"chosen {data['mean_chosen']:.0f}, rejected {data['mean_rejected']:.0f}, longest {data['longest']}"
    )
    given = {name: getattr(args, name) for name in GIVEN}
    shape = json.loads((scratch / "model" / "config.json").read_text(encoding="utf-8"))
    settings = {key: getattr(args, key) for key in ("steps", "rounds", "seed", "lengths", "breakdown")}
    same = {key: about[key] for key in ("device", "python", "versions")} | {
        "benchmarks": fingerprint("benchmarks/steps", scratch / "rows.jsonl"),
        "model": name,
        "shape": {key: shape.get(key) for key in SMOLLM2},
        "settings": given | settings | {"warm_up": WARM_UP, "data": Path(args.data).name if args.data else None},
    }  # fmt: skip
    source = {"commit": about["commit"], "rmfast": fingerprint("rmfast")}
    known, failed, measured = earlier(args.json, same, source)
    measured.append(limits_here(args.device))
    results: Runs = {mode: known.get(mode, []) for mode in args.modes}
    peak = peak_flops(torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32)

    def report(*, complete: bool) -> dict[str, Any]:
        done = {mode: runs for mode, runs in results.items() if runs}
        product = max(each["matmul"] for each in measured)
        result = about | same | {
            "complete": complete,
            "source": source,
            "data": data,
            "step": step,
            "summary": summarise(done, pairs=args.pairs_per_step, step=step, product=product, peak=peak),
            "failed": failed,
            "attention": {mode: runs[0]["attention"] for mode, runs in done.items() if "attention" in runs[0]},
            "flops_counted": FLOPS,
            "limits": measured,
            "largest_loss_difference": differences(done),
            "breakdown": breakdowns(done),
            "rounds": done,
        }  # fmt: skip
        if args.json:
            write_json(args.json, result)
        return result

    first = "rmfast" if "rmfast" in args.modes else args.modes[-1]
    order = [first, *(mode for mode in reversed(args.modes) if mode != first)]
    for number, mode in ((number, mode) for number in range(args.rounds) for mode in order):
        where = f"round {number + 1}/{args.rounds}  {mode:<22}"
        if mode in failed:
            continue
        if len(results[mode]) > number:
            print(f"{where} measured by an earlier call", flush=True)
            continue
        rows = scratch / ("sorted.jsonl" if mode in ("trl-tuned", "trl-liger") else "rows.jsonl")
        files = {"model": str(scratch / "model"), "rows": str(rows), "scratch": str(scratch)}
        job = Job(mode=mode, steps=args.steps + extra, breakdown=args.breakdown, **files, **given)
        try:
            result = run_mode(job, args.limit)
            for other in [m for m in order if results[m]][:1]:
                check_same_pairs(mode, result["steps"], other, results[other][0]["steps"])
            results[mode].append(result | {"source": source})
            print(f"{where} {median(result['wall_seconds'][WARM_UP:]):.3f} s/step", flush=True)
        except ModeFailed as error:
            failed[mode] = str(error)
            print(f"{where} {error}", flush=True)
        report(complete=False)
    measured.append(limits_here(args.device))
    result = report(complete=True)
    print("\n".join(["", *lines(result), f"FLOPs: {FLOPS}"]))
    if not results[first]:
        raise RuntimeError(f"{first}: {failed[first]}")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 2 for bad input, 1 if rmfast failed (without it: the last mode)."""
    try:
        args = parse(arguments)
        with tempfile.TemporaryDirectory(prefix="steps-") as scratch:
            compare(args, Path(scratch))
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
