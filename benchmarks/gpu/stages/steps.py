"""Whole training steps beside TRL and packed transformers, by benchmarks/train_throughput.py."""

import json
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.parts import Call, Part, Settings

ALL = ("trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast")
SHORT = ("trl", "trl-no-checkpointing", "hf-packed", "rmfast")
# Model, lengths, modes, more steps than the four of the others for a curve, seconds.
RUNS: tuple[tuple[str, str, tuple[str, ...], int, float], ...] = (
    ("llama-1b", "hh", ALL, 6, 285.0),
    ("smollm2-135m", "hh", ALL, 12, 200.0),
    ("llama-1b", "long", SHORT, 4, 260.0),
    ("llama-1b", "alpaca", SHORT, 4, 200.0),
    ("smollm2-135m", "alpaca", SHORT, 4, 130.0),
    ("smollm2-135m", "long", SHORT, 4, 160.0),
)
TINY = ["--model", "tiny", "--lengths", "tiny", "--threads", 1, "--steps", 2, "--pairs-per-step", 4, "--micro-batch", 4,
        "--tokens-per-pack", 128, "--modes", "hf-packed", "rmfast"]  # fmt: skip
NAMES = {
    "trl": "TRL, its defaults",
    "trl-no-checkpointing": "TRL without checkpointing",
    "trl-tuned": "TRL without checkpointing, pairs sorted by length",
    "trl-liger": "the same with Liger",
    "hf-packed": "transformers, packed, no shared prefix",
    "rmfast": "rmfast",
}


def run(model: str, lengths: str, modes: tuple[str, ...], steps: int, call: Call) -> dict[str, Any]:
    settings = call.settings
    out = call.folder("steps") / f"{model}-{lengths}.json"
    # Not removed: one that was cut short goes on from there, and it tells one of another job or source apart.
    if settings.tiny:
        flags: list[Any] = TINY
    else:
        ready = [mode for mode in modes if mode not in absent(modes)]
        profiled = ["--breakdown", "rmfast", "hf-packed"] if modes == ALL else ["--breakdown", "rmfast"]
        flags = ["--model", model, "--lengths", lengths, "--steps", steps, "--modes", *ready, *profiled]
    call.python("benchmarks/train_throughput.py", *flags, "--device", settings.device, "--json", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    return result | {"absent": {} if settings.tiny else absent(modes)}


def absent(modes: Sequence[str]) -> dict[str, str]:
    """Modes that need a package which is not here, and that package."""
    wanted = {mode: (["trl"] if mode.startswith("trl") else []) + (["liger_kernel"] if mode == "trl-liger" else [])
              for mode in modes}  # fmt: skip
    missing = {mode: [name for name in names if find_spec(name) is None] for mode, names in wanted.items()}
    return {mode: ", ".join(names) for mode, names in missing.items() if names}


def without(result: dict[str, Any]) -> dict[str, str]:
    """Modes that have no figures, and why."""
    lacking = {mode: f"not installed: {names}" for mode, names in result.get("absent", {}).items()}
    return lacking | {mode: why.strip().splitlines()[-1][:160] for mode, why in result.get("failed", {}).items()}


def parts(settings: Settings) -> list[Part]:
    """A part for each model and lengths."""
    if settings.tiny:
        return [Part("steps", "tiny", 20.0, partial(run, "tiny", "tiny", (), 2))]
    return [
        Part(
            "steps", f"{model} {lengths}", seconds, partial(run, model, lengths, modes, steps), needs=("cuda",),
            keeps=True,
        )
        for model, lengths, modes, steps, seconds in RUNS
    ]  # fmt: skip


def lines(records: dict[str, dict[str, Any]]) -> list[str]:
    """Speed, memory and MFU of each mode."""
    out = []
    for name, record in records.items():
        if record["status"] != "done":
            continue
        result = record["result"]
        product = max(each["matmul"] for each in result["limits"]) / 1e12
        out.append(f"  {name}: a product runs at {product:.1f} TFLOP/s; largest difference of a loss "
                   f"{max(result['largest_loss_difference'].values(), default=0.0):.1e}")  # fmt: skip
        own = result["summary"]["rmfast"]["wall_seconds"]
        for mode, row in result["summary"].items():
            mfu = "" if row["mfu"] is None else f"{row['mfu']:>7.1%} MFU"
            out.append(f"    {mode:<22}{row['wall_seconds']:>9.3f} s/step{row['wall_seconds'] / own:>7.2f} x"
                       f"{row['tokens_per_second']:>11,.0f} tokens/s{mfu}{row['peak_gib']:>7.1f} GiB")  # fmt: skip
        out += [f"    {mode:<22}{why}" for mode, why in without(result).items()]
        for mode, profile in result["breakdown"].items():
            groups = ", ".join(f"{group} {spent:.0f}" for group, spent in list(profile["groups"].items())[:5])
            if profile["gap_ms"] is not None:
                out.append(f"    {mode}: {profile['span_ms']:.0f} ms, idle {profile['gap_ms']:.0f}; {groups}")
    return out
