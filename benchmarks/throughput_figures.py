"""What the figures of `train_throughput.py` are made of, and how they are printed."""

import argparse
from statistics import median
from typing import Any

import torch
from vs_trl import WARM_UP, print_curves, print_table, summarise

from rmfast.trainer.flops import peak_flops

FLOPS = (
    "one count of the useful work for all modes: each prefix once, the last layer at the scored tokens only, no "
    "padding, nothing recomputed. A mode that does more work than that uses the hardware more than its MFU says"
)


def differences(done: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Largest difference of a loss of each mode from the last one's."""
    losses = [(mode, runs[0]["loss"]) for mode, runs in done.items()]
    return {m: max(abs(a - b) for a, b in zip(loss, losses[-1][1], strict=True)) for m, loss in losses[:-1]}


def figures(
    done: dict[str, list[dict[str, Any]]],
    ceilings: list[dict[str, Any]],
    step: dict[str, float],
    args: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """A row for each mode. One count of useful FLOPs is divided by all their times (`step_flops`)."""
    product = max(each["matmul"] for each in ceilings)
    peak = peak_flops(torch.device(args.device), torch.bfloat16 if args.device == "cuda" else torch.float32)
    table: dict[str, dict[str, Any]] = {}
    for mode, runs in done.items():
        row: dict[str, Any] = summarise(runs, pairs=args.pairs_per_step, sequence_tokens=step["sequence_tokens"])
        rate = step["flops"] / row["wall_seconds"]
        table[mode] = row | {
            "tokens_per_second": step["tokens"] / row["wall_seconds"],
            "tflops": rate / 1e12,
            "mfu": None if peak is None else rate / peak,
            "share_of_product": rate / product,
        }
    return table


def breakdowns(done: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of each mode its profiled step, beside the median of those that no profiler watched."""
    return {
        mode: runs[0]["breakdown"] | {"unprofiled_ms": 1e3 * median(runs[0]["wall_seconds"][WARM_UP:])}
        for mode, runs in done.items()
        if "breakdown" in runs[0]
    }


def print_result(result: dict[str, Any], args: argparse.Namespace) -> None:
    """Losses, speed and breakdowns of all modes."""
    if result["summary"]:
        print(
            f"\nTRL's modes take micro-batches of {args.micro_batch} pairs; packs hold {args.tokens_per_pack:,} tokens"
        )
        print_curves({mode: runs[0]["loss"] for mode, runs in result["rounds"].items()})
        print_table(result["summary"])
        print_throughput(result["summary"])
        print(f"FLOPs: {FLOPS}")
    for what, why in result["failed"].items():
        print(f"{what:<22} {why}")
    for mode, engine in result["attention"].items():
        print(f"{mode}'s attention: {engine}")
    for mode, profile in result["breakdown"].items():
        print_breakdown(mode, profile)


def print_throughput(table: dict[str, dict[str, Any]]) -> None:
    """Tokens are those of the steps' sequences, prompts repeated: the same number of them for every mode."""
    print(f"\n{'':<22}{'tokens/s':>13}{'TFLOP/s':>13}{'MFU':>13}{'of a product':>14}")
    for mode, row in table.items():
        mfu = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        share = f"{row['share_of_product']:.1%}"
        print(f"{mode:<22}{row['tokens_per_second']:>13,.0f}{row['tflops']:>13.3f}{mfu:>13}{share:>14}")


def print_breakdown(mode: str, profile: dict[str, Any]) -> None:
    """Where a step's time went."""
    if "fault" in profile:
        print(f"\n{mode}, one step: no breakdown: {profile['fault']}")
        return
    plain = f" ({profile['unprofiled_ms']:.1f} ms without the profiler)"
    print(f"\n{mode}, one step: {profile['step_ms']:.1f} ms{plain}", end="")
    if profile["gap_ms"] is not None:
        print(f", {profile['span_ms']:.1f} ms from its first kernel's start to its last one's end, the device idle for "
              f"{profile['gap_ms']:.1f} ms of them in {profile['gaps']} gaps and {profile['host_gap']:.1%} of the step",
              end="")  # fmt: skip
    print(f"; by {profile['kind']}:")
    for name, spent in profile["groups"].items():
        print(f"  {spent:>10.2f} ms  {name}")
    for row in profile["top"]:
        print(f"  {row['ms']:>10.2f} ms {row['count']:>7} x  {row['name'][:90]}")
