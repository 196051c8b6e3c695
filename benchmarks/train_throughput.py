"""A whole training step: seconds, tokens and pairs a second, MFU and memory, beside TRL and packed transformers.

    python benchmarks/train_throughput.py --model llama-1b --lengths hh --device cuda --json OUT [--breakdown]

Each mode trains the same weights on the same pairs of each step with the same optimizer, in a fresh interpreter; the
modes take turns, rmfast first, and the first step is left out. A mode that fails is named ("does not fit" where memory
runs out), and the others go on; --json is written after each, and the same call again goes on where it was killed.
Pairs have random tokens and the lengths of a named distribution, or come from `--data FILE`. bf16 with fp32 weights on
a GPU, fp32 on a CPU. The device's copy and matrix product are timed before and after.

modes   trl         its defaults: padded micro-batches in random order, gradient checkpointing
        trl-no-checkpointing    the same without checkpointing
        trl-tuned   no checkpointing, and each step's pairs sorted by length before they are cut into micro-batches
        trl-liger   trl-tuned with Liger's kernels (GPU)
        hf-packed   transformers' model over packs without padding, every sequence whole: no prefix is shared (what
                    OpenRLHF and ms-swift do where packing is asked for)
        rmfast      the defaults of `task: reward`
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
from statistics import fmean
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
import vs_trl_inputs
from lengths import DISTRIBUTIONS, draw_lengths
from throughput_state import ModeFailed, digests, earlier, end_of, fingerprint, same_pairs, why_it_failed
from train_throughput_worker import Mode
from vs_trl import machine, print_curves, print_table, summarise
from vs_trl_inputs import SMOLLM2, open_table, prepare_model, prepare_rows
from vs_trl_worker import Job

from rmfast.data.loader import totals_of
from rmfast.errors import UserError
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.trainer.flops import peak_flops, step_flops

MODES = get_args(Mode)
# Of a 1B model a padded token takes 2 MB without checkpointing: 8 pairs of the longest, 86,656 tokens, fill no GPU.
MICRO_BATCH = {"long": 2}
FLOPS = (
    "one count of the useful work for all modes: each prefix once, the last layer at the scored tokens only, no "
    "padding, nothing recomputed. A mode that does more work than that uses the hardware more than its MFU says"
)
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": SMOLLM2
    | {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
    },
    "smollm2-135m": SMOLLM2,
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": True,
    },
}


def write_pairs(path: Path, lengths: np.ndarray, vocabulary: int, forbidden: int, seed: int) -> None:
    """Pairs of random token ids with these lengths [pairs, 3]; chosen answers take even ids and rejected ones odd,
    so that there is something to learn. `forbidden` is the pad token."""
    draw = np.random.default_rng(seed)
    ids = np.delete(np.arange(16, vocabulary), np.flatnonzero(np.arange(16, vocabulary) == forbidden))
    even, odd = ids[ids % 2 == 0], ids[ids % 2 == 1]
    with path.open("w") as file:
        for prompt, chosen, rejected in lengths.tolist():
            shared = draw.choice(ids, prompt).tolist()
            answers = (draw.choice(even, chosen).tolist(), draw.choice(odd, rejected).tolist())
            row = {name: shared + answer for name, answer in zip(("chosen_ids", "rejected_ids"), answers, strict=True)}
            file.write(json.dumps(row) + "\n")


def sort_within_steps(rows: Path, out: Path, longest: np.ndarray, pairs: int) -> None:
    """The same rows with each step's pairs in descending order of their longer sequence."""
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    order = [first + i for first in range(0, len(lines), pairs)
             for i in np.argsort(-longest[first : first + pairs], kind="stable").tolist()]  # fmt: skip
    out.write_text("".join(lines[i] for i in order), encoding="utf-8")


def run_mode(mode: str, job: Job, folder: Path, *, breakdown: bool = False) -> dict[str, Any]:
    """One mode in a fresh interpreter; digests of its steps in place of their token ids.

    Raises:
        ModeFailed: it did not run to its end.
    """
    job_file, out = folder / "job.json", folder / f"{mode}.json"
    job_file.write_text(json.dumps(asdict(job)))
    out.unlink(missing_ok=True)
    threads = {} if job.threads is None else {n: str(job.threads) for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.device == "cpu" else {}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    worker = str(Path(__file__).with_name("train_throughput_worker.py"))
    command = [sys.executable, worker, str(job_file), mode, str(out), *(["breakdown"] if breakdown else [])]
    done = subprocess.run(command, env=os.environ | threads | hidden | offline, capture_output=True, text=True)
    if done.returncode or not out.is_file():
        print(end_of(done), file=sys.stderr, flush=True)
        raise ModeFailed(why_it_failed(done.returncode, end_of(done)))
    result = json.loads(out.read_text())
    return result | {"steps": digests(result.pop("ids"), job.pairs_per_step)}


def print_throughput(table: dict[str, dict[str, Any]]) -> None:
    """Tokens are those of the steps' sequences, prompts repeated: the same number of them for every mode."""
    print(f"\n{'':<22}{'tokens/s':>13}{'TFLOP/s':>13}{'MFU':>13}{'of a product':>14}")
    for mode, row in table.items():
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        share = f"{row['share_of_product']:.1%}"
        print(f"{mode:<22}{row['tokens_per_second']:>13,.0f}{row['tflops']:>13.3f}{mfu:>13}{share:>14}")


def print_breakdown(mode: str, profile: dict[str, Any]) -> None:
    """Where the last step's time went."""
    plain = "" if profile["unprofiled_ms"] is None else f" ({profile['unprofiled_ms']:.1f} ms without the profiler)"
    print(f"\n{mode}, one step: {profile['step_ms']:.1f} ms{plain}", end="")
    if profile["gap_ms"] is not None:
        print(f", {profile['span_ms']:.1f} ms from its first kernel's start to its last one's end, the device idle for "
              f"{profile['gap_ms']:.1f} ms of them in {profile['gaps']} gaps", end="")  # fmt: skip
    print(f"; by {profile['kind']}:")
    for name, spent in profile["groups"].items():
        print(f"  {spent:>10.2f} ms  {name}")
    for row in profile["top"]:
        print(f"  {row['ms']:>10.2f} ms {row['count']:>7} x  {row['name'][:90]}")


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
    add("--breakdown", nargs="*", choices=MODES, metavar="MODE", help="also profile a step of these (default: rmfast)")
    add("--steps", type=int, default=4, help="optimizer steps, at least 2 (default: %(default)s)")
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
    for name, low in (("steps", 2), ("pairs_per_step", 1), ("micro_batch", 1), ("rounds", 1), ("max_length", 2)):
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
    if args.breakdown is not None:
        args.breakdown = args.breakdown or ["rmfast"]
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
    if mode == "trl-liger" and importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed"
    return None


def prepare(args: argparse.Namespace, scratch: Path) -> tuple[str, dict[str, Any], dict[str, float]]:
    """Model, rows and sorted rows in `scratch`; what the model and the data are, and means over the timed steps."""
    model, rows = scratch / "model", scratch / "rows.jsonl"
    if args.model in SHAPES:
        with mock.patch.dict(vs_trl_inputs.SMOLLM2, SHAPES[args.model], clear=True):
            prepare_model(None, model, args.seed)
        name = f"{args.model} shape, random weights"
    else:
        name = prepare_model(args.model, model, args.seed)
    config = json.loads((model / "config.json").read_text())
    count, source = args.steps * args.pairs_per_step, args.data
    if source is None:
        source = str(scratch / "drawn.jsonl")
        lengths = draw_lengths(args.lengths, count + 64, args.seed)
        write_pairs(Path(source), lengths, config["vocab_size"], config["pad_token_id"], args.seed)
    limits = {"max_length": args.max_length, "tokens_per_pack": args.tokens_per_pack}
    about = prepare_rows(source, model, rows, count=count, limits=limits, seed=args.seed)
    _, table = open_table(rows, model, limits)
    longest = np.array([max(map(len, table.sequences_of(group))) for group in range(len(table))])
    sort_within_steps(rows, scratch / "sorted.jsonl", longest, args.pairs_per_step)
    shape = decoder_config(read_config(model))
    steps = np.arange(count).reshape(args.steps, -1)[1:]
    totals = [totals_of(table, step) for step in steps]
    means = {
        "flops": fmean(step_flops(shape, t) for t in totals),
        "sequence_tokens": fmean(t.sequence_tokens for t in totals),
    }
    return name, about, means


def compare(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run all modes and print what came out; everything that was measured."""
    about = machine(args.device)
    fallback = 2048 if args.data else DISTRIBUTIONS[args.lengths].longest
    args.max_length = args.max_length or fallback
    name, data, means = prepare(args, scratch)
    print(
        f"{name}; {data['rows']} pairs, common prefix {data['mean_prefix']:.0f} tokens, "
        f"chosen {data['mean_chosen']:.0f}, rejected {data['mean_rejected']:.0f}, longest {data['longest']}; "
        f"TRL's micro-batches: {args.micro_batch} pairs, packs: {args.tokens_per_pack:,} tokens"
    )
    names = ("steps", "pairs_per_step", "micro_batch", "tokens_per_pack", "max_length", "lr", "device", "threads")
    plain = Job(
        model=str(scratch / "model"),
        rows=str(scratch / "rows.jsonl"),
        scratch=str(scratch),
        **{n: getattr(args, n) for n in names},
    )
    sorted_rows = replace(plain, rows=str(scratch / "sorted.jsonl"))
    jobs = {mode: sorted_rows if mode in ("trl-tuned", "trl-liger") else plain for mode in MODES}
    settings = {n: getattr(args, n) for n in (*names, "rounds", "seed", "lengths")}
    shape = json.loads((scratch / "model" / "config.json").read_text())
    job = {name: about[name] for name in ("device", "python", "versions", "commit")} | {
        "source": fingerprint(scratch / "rows.jsonl"),
        "model": name,
        "shape": {key: shape.get(key) for key in SMOLLM2},
        "settings": settings | {"data": Path(args.data).name if args.data else None},
    }
    known = earlier(args.json, job)
    ceilings = [*known.get("limits", []), limits_here(args.device)]
    results: dict[str, list[dict[str, Any]]] = {mode: known.get("rounds", {}).get(mode, []) for mode in args.modes}
    profiles: dict[str, Any] = known.get("breakdown", {})
    # Memory that ran out once would run out again; anything else is tried again.
    failed = {what: why for what, why in known.get("failed", {}).items() if "does not fit" in why}

    def report(*, complete: bool) -> dict[str, Any]:
        done = {mode: runs for mode, runs in results.items() if runs}
        table = figures(done, ceilings, means, args)
        result = about | job | {
            "complete": complete,
            "data": data,
            "step": means,
            "summary": table,
            "failed": failed,
            "attention": {mode: runs[0]["attention"] for mode, runs in done.items() if "attention" in runs[0]},
            "flops_counted": FLOPS,
            "limits": ceilings,
            "largest_loss_difference": differences(done),
            "breakdown": profiles,
            "rounds": done,
        }  # fmt: skip
        if args.json:
            write(args.json, result)
        return result

    first = base_of(args.modes)
    order = [first, *(mode for mode in args.modes if mode != first)]
    for number, mode in ((number, mode) for number in range(args.rounds) for mode in order):
        if mode in failed:
            continue
        where = f"round {number + 1}/{args.rounds}  {mode:<22}"
        if len(results[mode]) > number:
            print(f"{where} measured by an earlier call", flush=True)
            continue
        try:
            result = run_mode(mode, jobs[mode], scratch)
            for other in [m for m in order if results[m]][:1]:
                same_pairs(mode, result["steps"], other, results[other][0]["steps"])
            results[mode].append(result)
            print(f"{where} {fmean(result['wall_seconds'][1:]):.3f} s/step", flush=True)
        except ModeFailed as error:
            failed[mode] = str(error)
            print(f"{where} {error}", flush=True)
        report(complete=False)
    for mode in args.breakdown or []:
        if mode in profiles or mode in failed or f"breakdown {mode}" in failed:
            continue
        try:
            profile = run_mode(mode, jobs[mode], scratch, breakdown=True)["breakdown"]
            walls = [1e3 * fmean(run["wall_seconds"][1:]) for run in results.get(mode, [])]
            profiles[mode] = profile | {"unprofiled_ms": min(walls, default=None)}
        except ModeFailed as error:
            failed[f"breakdown {mode}"] = str(error)
        report(complete=False)
    ceilings.append(limits_here(args.device))
    result = report(complete=True)
    if result["summary"]:
        print(
            f"\nTRL's modes take micro-batches of {args.micro_batch} pairs; packs hold {args.tokens_per_pack:,} tokens"
        )
        print_curves({mode: runs[0]["loss"] for mode, runs in result["rounds"].items()})
        print_table(result["summary"])
        print_throughput(result["summary"])
        print(f"FLOPs: {FLOPS}")
    for what, why in failed.items():
        print(f"{what:<22} {why}")
    for mode, engine in result["attention"].items():
        print(f"{mode}'s attention: {engine}")
    for mode, profile in profiles.items():
        print_breakdown(mode, profile)
    if not results[first]:
        raise RuntimeError(f"{first}: {failed[first]}")
    return result


def base_of(modes: list[str]) -> str:
    """The mode that runs first and without which a comparison is worth nothing."""
    return "rmfast" if "rmfast" in modes else modes[-1]


def differences(done: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Largest difference of a loss of each mode from the last one's."""
    losses = [(mode, runs[0]["loss"]) for mode, runs in done.items()]
    return {m: max(abs(a - b) for a, b in zip(loss, losses[-1][1], strict=True)) for m, loss in losses[:-1]}


def figures(
    done: dict[str, list[dict[str, Any]]],
    ceilings: list[dict[str, Any]],
    means: dict[str, float],
    args: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """A row for each mode. One count of useful FLOPs is divided by all their times (`step_flops`)."""
    product = max(each["matmul"] for each in ceilings)
    peak = peak_flops(torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32)
    table: dict[str, dict[str, Any]] = {}
    for mode, runs in done.items():
        row: dict[str, Any] = summarise(runs, pairs=args.pairs_per_step, sequence_tokens=means["sequence_tokens"])
        rate = means["flops"] / row["wall_seconds"]
        table[mode] = row | {
            "tokens_per_second": means["sequence_tokens"] / row["wall_seconds"],
            "tflops": rate / 1e12,
            "mfu": None if peak is None else rate / peak,
            "share_of_product": rate / product,
        }
    return table


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file at once, so that a call that is killed leaves a whole one."""
    aside = path.with_name(f"{path.name}.partial")
    aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)


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
