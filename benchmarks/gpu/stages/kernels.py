"""Every op of rmfast.kernels against its limit, plain torch and libraries, by benchmarks/kernels/run.py.

What torch.compile makes (of the reference, and FlexAttention) takes longer to compile than all others to run: it is
timed by parts of its own.
"""

import json
from functools import partial
from typing import Any

from benchmarks.gpu.parts import Call, Part, Settings
from benchmarks.gpu.results import Results
from benchmarks.gpu.stages import suite
from benchmarks.kernels.verify import NOT_RUN, PASSED

# Attention by the lengths of its packs; compiling its reference, a loop over prompt groups, would take minutes.
ATTENTION = {name: (f"{name} D=64", f"{name} D=128") for name in ("hh", "ultrafeedback", "long")}
# Op, its test file, seconds.
OTHERS = (
    ("linear_log_prob", "test_log_prob.py", 40.0), ("info_nce", "test_info_nce.py", 25.0),
    ("add_rms_norm", "test_norm.py", 20.0), ("swiglu", "test_swiglu.py", 20.0), ("split_rope", "test_rope.py", 20.0),
    ("score_head", "test_score_head.py", 20.0), ("ranking_loss", "test_ranking_kernel.py", 20.0),
    ("sinkhorn", "test_sinkhorn.py", 20.0), ("swapped_prediction_loss", "test_swapped.py", 20.0),
    ("rms_norm", "test_norm.py", 25.0), ("difference_loss", "test_difference_loss.py", 15.0),
    ("rope", "test_rope.py", 20.0), ("gae", "test_gae.py", 15.0), ("policy_loss", "test_policy_losses.py", 15.0),
    ("value_loss", "test_policy_losses.py", 15.0),
)  # fmt: skip
LIBRARIES = ("rmfast", "liger", "liger (cross-entropy)", "apex", "flash + merge")
COMPILED_SECONDS = 60.0


def run(op: str, test: str, sizes: tuple[str, ...], against: tuple[str, ...], call: Call) -> dict[str, Any]:
    """Time an op; what its tests have said here so far is kept with the figures."""
    settings = call.settings
    out = call.folder("kernels") / "result.json"
    out.unlink(missing_ok=True)
    flags: list[Any] = ["--op", op, "--no-tests", "--against", *against, "--json", out]
    if settings.tiny:
        flags += ["--size", "tiny", "--device", settings.device, "--rounds", 2]
    call.python("benchmarks.kernels.run", *flags, *(["--only", *sizes] if sizes else []))
    said = suite.verdicts(Results(settings.out).stage("suite")).get(test, NOT_RUN)
    return json.loads(out.read_text(encoding="utf-8")) | {"tests": {op: said}}


def parts(settings: Settings) -> list[Part]:
    """A part for each op, three for attention, and again for what torch.compile makes; one op at the tiny size."""
    if settings.tiny:
        return [Part("kernels", "swiglu", 30.0, partial(run, "swiglu", "test_swiglu.py", (), ()))]

    def part(name: str, seconds: float, *what: Any) -> Part:
        return Part("kernels", name, seconds, partial(run, *what), needs=("cuda", "triton"))

    test = "test_prefix_attention.py"
    attention = [
        part(f"{start}prefix_attention {name}", seconds, "prefix_attention", test, sizes, against)
        for name, sizes in ATTENTION.items()
        for start, seconds, against in (("", 30.0, LIBRARIES), ("compiled ", COMPILED_SECONDS, ("rmfast", "flex")))
    ]
    others = [part(op, seconds, op, file, (), LIBRARIES) for op, file, seconds in OTHERS]
    compiled = [part(f"compiled {op}", COMPILED_SECONDS, op, file, (), ("rmfast", "compile")) for op, file, _ in OTHERS]
    return [*attention, *others, *compiled]


def mark(tests: dict[str, str], op: str) -> str:
    """What is shown beside a figure of an op whose tests have not all passed."""
    said = tests.get(op, NOT_RUN)
    return "" if said == PASSED else f"tests: {said}"


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
    tests = {op: said for result in done for op, said in result["tests"].items()}
    return done[0] | {"results": rows, "skipped": [line for result in done for line in result["skipped"]],
                      "tests": tests}  # fmt: skip


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
        marked = f"  ({said})" if (said := mark(whole["tests"], op)) else ""
        share = f"{own['share_of_limit']:>7.1%}"
        out.append(f"  {op:<24}{size:<22}{which:<17}{own['milliseconds']:>9.4f} ms{share}{against}{marked}")
    return out + [f"  left out: {line['op']} {line['what']}: {line['why'][:100]}" for line in whole["skipped"]]
