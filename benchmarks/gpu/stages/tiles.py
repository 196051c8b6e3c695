"""The search for tiles and warps, a line or two of a kernel's table a part."""

import os
from typing import Any

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import Records

# Seconds: the compiler's check is done side by side, but what is timed compiles once more, one tile after another.
MOST = 8  # candidates of a line, those nearest to the tile that holds
PARTS = {
    "prefix_attention D=64": (75.0, [f"prefix_attention D=64 half {which}" for which in ("fwd", "dkv")]),
    "linear_log_prob": (45.0, [f"linear_log_prob {which}" for which in ("fwd", "bwd")]),
    "prefix_attention D=64 dq": (45.0, ["prefix_attention D=64 half dq"]),
    "prefix_attention D=128": (85.0, [f"prefix_attention D=128 half {which}" for which in ("fwd", "dkv")]),
    "prefix_attention D=128 dq": (50.0, ["prefix_attention D=128 half dq"]),
    "info_nce": (110.0, [f"info_nce half {which}" for which in ("forward", "gradient", "resident")]),
    "sinkhorn": (70.0, ["sinkhorn columns", "sinkhorn rows"]),
}
TINY = ["sinkhorn columns"]


def parts(settings: Settings) -> list[Part]:
    """A part for each kernel; one small line at the tiny size."""
    most, processes = (1, 1) if settings.tiny else (MOST, max(1, (os.cpu_count() or 1) - 2))
    here = ("--arch", settings.arch, "--device", settings.device, "--most", most, "--processes", processes)

    def part(name: str, seconds: float, names: list[str], *needs: str) -> Part:
        words = ("benchmarks.gpu.search", "--target", *names, *here)
        return Part("tiles", name, seconds, words, needs=(*needs, "triton"))

    if settings.tiny:
        return [part("sinkhorn", 30.0, TINY)]
    return [part(name, seconds, names, "cuda") for name, (seconds, names) in PARTS.items()]


def gain(line: dict[str, Any]) -> str:
    """How much faster a line's winner is than the tile that held, if that runs at all."""
    if line["held_milliseconds"] is None:
        return "the only one that runs, not"
    return f"{line['held_milliseconds'] / line['winner_milliseconds']:.2f} x"


def lines(records: Records) -> list[str]:
    """The winner of each line, how much faster it is than the tile that holds, and its line of the table."""
    out = []
    for record in records.values():
        for line in record["result"]["lines"] if record["status"] == "done" else ():
            tried = f"{len(line['tried'])} tried, {sum(bool(row['faults']) for row in line['tried'])} refused"
            held = tuple(line["held"].values())
            if line["winner"] is None:
                out.append(f"  {line['name']:<34}{tried}; stays {held}")
            else:
                out.append(f"  {line['name']:<34}{tried}; {tuple(line['winner'].values())} is {gain(line)} {held}")
                out.append(f"  {'':<34}{line['file']}, {line['table']}: {line['line']}")
    return out
