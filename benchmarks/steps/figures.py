"""What the figures of compare.py are made of, and how they are printed."""

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import Any

WARM_UP = 2  # steps of a run that are not counted
FLOPS = (
    "one count of the useful work for all modes: each prefix once, the last layer at the scored tokens only, no "
    "padding, nothing recomputed. A mode that does more work than that uses the hardware more than its MFU says"
)
SPEED = {  # label: key of a mode's row, format
    "pairs/s": ("pairs_per_second", "{:.2f}"),
    "CPU s/step": ("cpu_seconds", "{:.3f}"),
    "wall s/step": ("wall_seconds", "{:.3f}"),
    "tokens/step": ("computed_tokens", "{:,.0f}"),
    "padding": ("padding_share", "{:.1%}"),
    "prefix saved": ("prefix_share", "{:.1%}"),
    "peak GiB": ("peak_gib", "{:.2f}"),
    "CPU ratio": ("cpu_seconds", "{:.2f} x"),
    "wall ratio": ("wall_seconds", "{:.2f} x"),
}
RATES = {
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "TFLOP/s": ("tflops", "{:.3f}"),
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


def row(name: object, cells: list[str]) -> str:
    return f"{name:<22}" + "".join(f"{cell:>13}" for cell in cells)


def show(result: dict[str, Any]) -> None:
    """Print losses, speed and breakdowns of all modes; ratios are to the last mode."""
    table, settings = result["summary"], result["settings"]
    if table:
        print(f"\nTRL's modes take micro-batches of {settings['micro_batch']} pairs; packs hold "
              f"{settings['tokens_per_pack']:,} tokens\n{row('step, loss', list(table))}")  # fmt: skip
        losses = [runs[0]["loss"] for runs in result["rounds"].values()]
        for number, values in enumerate(zip(*losses, strict=True), start=1):
            print(row(number, [f"{value:.6f}" for value in values]))
        for mode, difference in result["largest_loss_difference"].items():
            print(f"largest difference of a loss, {mode} and {list(table)[-1]}: {difference:.1e}")
        for columns in (SPEED, RATES):
            print("\n" + row("", list(columns)))
            for mode, one in table.items():
                print(row(mode, [cell(one, list(table.values())[-1], *column) for column in columns.values()]))
        print(f"FLOPs: {FLOPS}")
    for mode, why in result["failed"].items():
        print(f"{mode:<22} {why}")
    for mode, engine in result["attention"].items():
        print(f"{mode}'s attention: {engine}")
    for mode, profile in result["breakdown"].items():
        show_breakdown(mode, profile)


def show_breakdown(mode: str, profile: dict[str, Any]) -> None:
    """Print where a step's time went."""
    if "fault" in profile:
        print(f"\n{mode}, one step: no breakdown: {profile['fault']}")
        return
    gap = ""
    if profile["gap_ms"] is not None:
        gap = (f", {profile['span_ms']:.1f} ms from its first kernel's start to its last one's end, the device idle "
               f"for {profile['gap_ms']:.1f} ms of them in {profile['gaps']} gaps and {profile['host_gap']:.1%} of the "
               "step")  # fmt: skip
    plain = f" ({profile['unprofiled_ms']:.1f} ms without the profiler)"
    print(f"\n{mode}, one step: {profile['step_ms']:.1f} ms{plain}{gap}; by {profile['kind']}:")
    for name, spent in profile["groups"].items():
        print(f"  {spent:>10.2f} ms  {name}")
    for kernel in profile["top"]:
        print(f"  {kernel['ms']:>10.2f} ms {kernel['count']:>7} x  {kernel['name'][:90]}")
