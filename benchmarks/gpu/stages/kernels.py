"""Every op of rmfast.kernels against its limit, torch.compile and libraries, by benchmarks/kernels/run.py."""

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.gpu.parts import Call, Cut, Failed, Part, Settings, set_up

# Op -> sizes of a part and seconds. FlexAttention and the engines are attention's rivals; compiling its reference, a
# loop over prompt groups, would take minutes.
ATTENTION = {"hh": ("hh D=64", "hh D=128"), "ultrafeedback": ("ultrafeedback D=64", "ultrafeedback D=128"),
             "long": ("long D=64", "long D=128")}  # fmt: skip
OTHERS = {
    "linear_log_prob": 90.0, "info_nce": 30.0, "add_rms_norm": 20.0, "swiglu": 20.0, "split_rope": 20.0,
    "score_head": 20.0, "ranking_loss": 20.0, "sinkhorn": 20.0, "swapped_prediction_loss": 20.0, "rms_norm": 25.0,
    "difference_loss": 15.0, "rope": 20.0, "gae": 15.0, "policy_loss": 15.0, "value_loss": 15.0,
}  # fmt: skip
WARM, WARM_SECONDS = 8, 150.0  # ops compiled side by side, and what there must be time for


def flags(op: str, sizes: tuple[str, ...] = ()) -> list[str]:
    chosen = ["--only", *sizes] if sizes else []
    against = ["--against", "rmfast", "flex", "flash + merge"] if op == "prefix_attention" else []
    return ["--op", op, *chosen, *against]


def warm(call: Call) -> None:
    """Let all ops compile side by side, once on a machine, where there is time: what takes minutes one after another is
    then in caches. Cut off, it goes on with the ops that are left."""
    note = set_up(call.settings, "kernels")
    if note.is_file() or call.deadline - time.monotonic() < WARM_SECONDS:
        return

    def compile_one(op: str) -> None:
        mark = call.folder("kernels") / f"warm-{op}"
        if not mark.is_file():
            with contextlib.suppress(Failed):  # it will say so where it is timed
                call.python("benchmarks.kernels.run", *flags(op), "--rounds", 1)
            mark.touch()

    with ThreadPoolExecutor(WARM) as pool:
        list(pool.map(compile_one, ["prefix_attention", *OTHERS]))
    note.touch()


def run(op: str, sizes: tuple[str, ...], call: Call) -> dict[str, Any]:
    tiny = call.settings.tiny
    if not tiny:
        warm(call)
    out = call.folder("kernels") / "result.json"
    out.unlink(missing_ok=True)
    small = ["--size", "tiny", "--device", call.settings.device, "--against", "--rounds", 2]
    try:
        call.python("benchmarks.kernels.run", *(["--op", op, *small] if tiny else flags(op, sizes)), "--json", out)
    except Cut:
        raise
    except Failed:  # code 1: the op's tests fail, and the result says so
        if not out.is_file():
            raise
    return json.loads(out.read_text(encoding="utf-8"))


def parts(settings: Settings) -> list[Part]:
    """A part for each op, three for attention; two ops at the tiny size."""
    if settings.tiny:
        return [Part("kernels", op, 10.0, partial(run, op, ())) for op in ("swiglu",)]
    first = [
        Part(
            "kernels",
            f"prefix_attention {name}",
            90.0 if name == "hh" else 40.0,
            partial(run, "prefix_attention", sizes),
            needs=("cuda",),
            setup=WARM_SECONDS,
        )
        for name, sizes in ATTENTION.items()
    ]
    return first + [
        Part("kernels", op, seconds, partial(run, op, ()), needs=("cuda",), setup=WARM_SECONDS)
        for op, seconds in OTHERS.items()
    ]


def with_limits(row: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """A row of run.py's, its share of what its own process measured computed again from the time."""
    memory, compute = row["bytes"] / limits["bandwidth"], row["flops"] / limits["matmul"]
    least = 1e3 * max(memory, compute)
    by = "memory" if memory >= compute else "matmul"
    return row | {"limits": limits, "limit_milliseconds": least, "share_of_limit": least / row["milliseconds"],
                  "limit_by": by}  # fmt: skip


def joined(records: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The parts' results as one of run.py's; each row is divided by its own part's limits, and holds them."""
    done = [record["result"] for record in records.values() if record["status"] == "done"]
    if not done:
        return None
    rows = [with_limits(row, result["limits"]) for result in done for row in result["results"]]
    return done[0] | {"results": rows, "skipped": [line for result in done for line in result["skipped"]]}


def lines(records: dict[str, dict[str, Any]]) -> list[str]:
    """Each op's share of its limit and its speed against the fastest other."""
    whole = joined(records)
    if whole is None:
        return []
    every = [record["result"]["limits"] for record in records.values() if record["status"] == "done"]
    copies, products = ([each[key] for each in every] for key in ("bandwidth", "matmul"))
    out = [f"copy {min(copies) / 1e9:.0f} to {max(copies) / 1e9:.0f} GB/s, {every[0]['dtype']} product "
           f"{min(products) / 1e12:.1f} to {max(products) / 1e12:.1f} TFLOP/s, by part"]  # fmt: skip
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in whole["results"]:
        groups.setdefault((row["op"], row["size"], row["pass"]), {})[row["contender"]] = row
    for (op, size, which), found in groups.items():
        own = found.get("rmfast") or found["torch"]
        others = {name: row for name, row in found.items() if row is not own and name != "base"}
        best = min(others.values(), key=lambda row: row["milliseconds"], default=None)
        against = "" if best is None else f"  {best['milliseconds'] / own['milliseconds']:.2f} x {best['contender']}"
        out.append(
            f"  {op:<24}{size:<22}{which:<17}{own['milliseconds']:>9.4f} ms{own['share_of_limit']:>7.1%}{against}"
        )
    return out + [f"  left out: {line['op']} {line['what']}: {line['why'][:100]}" for line in whole["skipped"]]
