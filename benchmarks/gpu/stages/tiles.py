"""The search for tiles and warps, a line or two of a kernel's table a part."""

import json
import os
from functools import partial
from typing import Any

from benchmarks.gpu.parts import Call, Part, Settings

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


def run(names: list[str], call: Call) -> dict[str, Any]:
    settings = call.settings
    out = call.folder("tiles") / "result.json"
    out.unlink(missing_ok=True)
    most, processes = (1, 1) if settings.tiny else (MOST, max(1, (os.cpu_count() or 1) - 2))
    call.python("benchmarks.gpu.search", "--target", *names, "--arch", settings.arch, "--device", settings.device,
                "--most", most, "--processes", processes, "--json", out)  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


def parts(settings: Settings) -> list[Part]:
    """A part for each kernel; one small line at the tiny size."""
    if settings.tiny:
        return [Part("tiles", "sinkhorn", 30.0, partial(run, TINY), needs=("triton",))]
    return [
        Part("tiles", name, seconds, partial(run, names), needs=("cuda", "triton"))
        for name, (seconds, names) in PARTS.items()
    ]


def gain(line: dict[str, Any]) -> str:
    """How much faster a line's winner is than the tile that held, if that runs at all."""
    if line["held_milliseconds"] is None:
        return "the only one that runs, not"
    return f"{line['held_milliseconds'] / line['winner_milliseconds']:.2f} x"


def lines(records: dict[str, dict[str, Any]]) -> list[str]:
    """The winner of each line and how much faster it is than the tile that holds."""
    out = []
    for record in records.values():
        for line in record["result"]["lines"] if record["status"] == "done" else ():
            tried = f"{len(line['tried'])} tried, {sum(bool(row['faults']) for row in line['tried'])} refused"
            if line["winner"] is None:
                out.append(f"  {line['name']:<34}{tried}; stays {tuple(line['held'].values())}")
            else:
                winner = tuple(line["winner"].values())
                out.append(f"  {line['name']:<34}{tried}; {winner} is {gain(line)} {tuple(line['held'].values())}")
    return out
