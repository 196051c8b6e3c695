"""What the figures of compare.py are made of, and how they are printed."""

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

WARM_UP = 2  # steps of a run that are not counted
FLOPS = (
    "one count of the useful work for all modes: each prefix once, the last layer at the scored tokens only, no "
    "padding, nothing recomputed. A mode that does more work than that uses the hardware more than its MFU says"
)
COLUMNS = {  # label: key of a mode's row, format
    "CPU s/step": ("cpu_seconds", "{:.3f}"),
    "CPU ratio": ("cpu_seconds", "{:.2f} x"),
    "wall s/step": ("wall_seconds", "{:.3f}"),
    "wall ratio": ("wall_seconds", "{:.2f} x"),
    "tokens/step": ("computed_tokens", "{:,.0f}"),
    "padding": ("padding_share", "{:.1%}"),
    "prefix saved": ("prefix_share", "{:.1%}"),
    "peak GiB": ("peak_gib", "{:.2f}"),
    "reserved": ("reserved_gib", "{:.2f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "MFU": ("mfu", "{:.1%}"),
    "of a product": ("share_of_product", "{:.1%}"),
}

Runs = dict[str, list[dict[str, Any]]]


def summarise(
    done: Runs, *, pairs: int, step: dict[str, float], product: float, peak: float | None, first: int = WARM_UP,
    middle: Callable[[Sequence[float]], float] = median,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """A row for each mode, medians over its rounds: seconds are medians over the steps that are counted, for one that a
    compiler or a busy machine held up says nothing; tokens are means over them.

    Args:
        pairs: of a step.
        step: `flops` and `tokens` of a step (one count of useful FLOPs is divided by all modes' times), and
            `sequence_tokens`, prompts repeated: what is computed of them beside padding is "real"; sharing prefixes
            saves the rest.
        product: FLOP/s of a matrix product here. peak: of the device's data sheet, where it is known.
        first, middle: the step that is counted first, and what is taken for the seconds of several.
    """
    table = {}
    for mode, runs in done.items():
        wall, cpu = (median(middle(r[name][first:]) for r in runs) for name in ("wall_seconds", "cpu_seconds"))
        computed, real = (fmean(runs[0][name][first:]) for name in ("computed_tokens", "real_tokens"))
        reserved = [r.get("reserved_bytes") for r in runs]
        rate = step["flops"] / wall
        table[mode] = {
            "pairs_per_second": pairs / wall,
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "computed_tokens": computed,
            "padding_share": 1 - real / computed,
            "prefix_share": 1 - real / step["sequence_tokens"],
            "peak_gib": median(r["peak_bytes"] for r in runs) / 2**30,
            "reserved_gib": None if None in reserved else median(reserved) / 2**30,
            "tokens_per_second": step["tokens"] / wall,
            "tflops": rate / 1e12,
            "mfu": None if peak is None else rate / peak,
            "share_of_product": rate / product,
        }
    return table


def differences(done: Runs) -> dict[str, float]:
    """Largest difference of a loss of each mode from the last one's."""
    losses = [(mode, runs[0]["loss"]) for mode, runs in done.items()]
    return {m: max(abs(a - b) for a, b in zip(loss, losses[-1][1], strict=True)) for m, loss in losses[:-1]}


def breakdowns(done: Runs) -> dict[str, Any]:
    """Of each mode its profiled step, beside the median of those that no profiler watched."""
    return {
        mode: runs[0]["breakdown"] | {"unprofiled_ms": 1e3 * median(runs[0]["wall_seconds"][WARM_UP:])}
        for mode, runs in done.items()
        if "breakdown" in runs[0]
    }


def cell(one: dict[str, Any], base: dict[str, Any], key: str, form: str) -> str:
    """A figure of a mode; as a multiple of the base's where the format says so."""
    if one[key] is None:
        return "-"
    return form.format(one[key] / base[key] if form.endswith(" x") else one[key])


def lines(result: dict[str, Any]) -> list[str]:
    """Speed and memory of all modes, ratios to the last one, what failed, and where a step's time went."""
    table = result["summary"]
    product = max(each["matmul"] for each in result["limits"]) / 1e12
    out = [f"a product runs at {product:.2f} TFLOP/s", f"{'':<22}" + "".join(f"{label:>13}" for label in COLUMNS)]
    for mode, one in table.items():
        cells = (cell(one, list(table.values())[-1], *column) for column in COLUMNS.values())
        out.append(f"{mode:<22}" + "".join(f"{text:>13}" for text in cells))
    for mode, difference in result["largest_loss_difference"].items():
        out.append(f"largest difference of a loss, {mode} and {list(table)[-1]}: {difference:.1e}")
    out += [f"{mode}: not installed or not working: {need}" for mode, need in result.get("absent", {}).items()]
    out += [f"{mode}: {why.strip().splitlines()[-1][:160]}" for mode, why in result["failed"].items()]
    out += [f"{mode}'s attention: {engine}" for mode, engine in result.get("attention", {}).items()]
    for mode, profile in result["breakdown"].items():
        if "fault" in profile:
            out.append(f"{mode}, one step: no breakdown: {profile['fault']}")
            continue
        spent = profile["groups"] or {row["name"]: row["ms"] for row in profile["top"]}
        gap = "" if profile["host_gap"] is None else f", host gap {profile['host_gap']:.1%} in {profile['gaps']} gaps"
        most = ", ".join(f"{name} {ms:.0f}" for name, ms in list(spent.items())[:6])
        took = f"{profile['step_ms']:.0f} ms ({profile['unprofiled_ms']:.0f} without the profiler){gap}"
        out.append(f"{mode}, one step: {took}; by {profile['kind']}: {most}")
    return out
