"""Every op of rmfast.kernels against its limit, plain torch and libraries, by benchmarks/kernels/run.py.

What torch.compile makes (of the reference, and FlexAttention) takes longer to compile than all others to run: it is
timed by parts of its ours.
"""

from typing import Any

from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import Records
from benchmarks.kernels.timing import against_limit
from benchmarks.kernels.verify import NOT_RUN, PASSED

# Attention by the lengths of its packs; compiling its reference, a loop over prompt groups, would take minutes.
ATTENTION = {name: (f"{name} D=64", f"{name} D=128") for name in ("hh", "ultrafeedback", "long")}
OTHERS = {
    "linear_log_prob": 40.0, "info_nce": 25.0, "add_rms_norm": 20.0, "swiglu": 20.0, "split_rope": 20.0,
    "score_head": 20.0, "ranking_loss": 20.0, "sinkhorn": 20.0, "swapped_prediction_loss": 20.0, "rms_norm": 25.0,
    "difference_loss": 15.0, "rope": 20.0, "gae": 15.0, "policy_loss": 15.0, "value_loss": 15.0,
    "decode_attention": 25.0,
}  # fmt: skip
"""Seconds of each op."""
LIBRARIES = ("rmfast", "liger", "liger (cross-entropy)", "apex", "flash + merge")
COMPILED_SECONDS = 60.0


def parts(settings: Settings) -> list[Part]:
    """A part for each op, three for attention, and again for what torch.compile makes; one op at the tiny size. What
    an op's tests have said here so far is kept with its figures."""

    def part(name: str, op: str, seconds: float, against: tuple[str, ...], *more: object) -> Part:
        words = ("--op", op, "--suite", settings.out / "suite.json", "--against", *against, *more)
        needs = () if settings.tiny else ("cuda", "triton")
        return Part("kernels", name, seconds, ("benchmarks.kernels.run", *words), needs=needs)

    if settings.tiny:
        return [part("swiglu", "swiglu", 30.0, (), "--size", "tiny", "--device", settings.device, "--rounds", 2)]
    attention = [
        part(f"{start}prefix_attention {name}", "prefix_attention", seconds, against, "--only", *sizes)
        for name, sizes in ATTENTION.items()
        for start, seconds, against in (("", 30.0, LIBRARIES), ("compiled ", COMPILED_SECONDS, ("rmfast", "flex")))
    ]
    others = [part(op, op, seconds, LIBRARIES) for op, seconds in OTHERS.items()]
    compiled = [part(f"compiled {op}", op, COMPILED_SECONDS, ("rmfast", "compile")) for op in OTHERS]
    return [*attention, *others, *compiled]


def mark(tests: dict[str, str], op: str) -> str:
    """What is shown beside a figure of an op whose tests have not all passed."""
    said = tests.get(op, NOT_RUN)
    return "" if said == PASSED else f"tests: {said}"


def joined(records: Records) -> dict[str, Any] | None:
    """The parts' results as one of run.py's; each row is divided by its ours part's limits, and holds them."""
    done = [record["result"] for record in records.values() if record["status"] == "done"]
    if not done:
        return None
    rows = [row | {"limits": result["limits"]} | against_limit(row, result["limits"])
            for result in done for row in result["results"]]  # fmt: skip
    tests = {op: said for result in done for op, said in result["tests"].items()}
    return done[0] | {"results": rows, "skipped": [line for result in done for line in result["skipped"]],
                      "tests": tests}  # fmt: skip


def lines(records: Records) -> list[str]:
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
        ours = found.get("rmfast") or found["torch"]
        others = {name: row for name, row in found.items() if row is not ours}
        best = min(others.values(), key=lambda row: row["milliseconds"], default=None)
        against = "" if best is None else f"  {best['milliseconds'] / ours['milliseconds']:.2f} x {best['contender']}"
        marked = f"  ({said})" if (said := mark(whole["tests"], op)) else ""
        share = f"{ours['share_of_limit']:>7.1%}"
        out.append(f"  {op:<24}{size:<22}{which:<17}{ours['milliseconds']:>9.4f} ms{share}{against}{marked}")
    return out + [f"  left out: {line['op']} {line['what']}: {line['why'][:100]}" for line in whole["skipped"]]
