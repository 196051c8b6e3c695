"""Times the ops of rmfast.kernels against plain torch, torch.compile, libraries, and the hardware.

    python benchmarks/kernels/run.py [--op NAME ...] [--size tiny|real] [--device cpu|cuda] [--rounds N]
                                     [--json OUT] [--plots FOLDER]

bf16 on a GPU; on a CPU fp32 and plain torch only, for Triton's interpreter says nothing about speed. README.md tells
how to read the columns.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor

from benchmarks.gpu.results import Results
from benchmarks.gpu.stages.suite import verdicts
from benchmarks.kernels import verify
from benchmarks.kernels.cases import OPS, At, Op, Problem
from benchmarks.kernels.timing import (
    BOTH,
    FORWARD,
    Sample,
    against_limit,
    apart,
    better,
    limits,
    measure,
    outputs_of,
    pass_of,
)
from benchmarks.origin import origin, write_json

AIM_MILLISECONDS = 60.0  # that a contender spends in a round on one pass
SEED = 0
COLUMNS = f"{'op':<26}{'size':<22}{'pass':<18}{'contender':<24}{'ms':>10}{'x torch':>9}{'limit':>8}{'MiB':>9}"

Call = Callable[..., Any]
Row = dict[str, Any]


def contenders(problem: Problem, device: torch.device, against: list[str] | None) -> Iterator[tuple[str, Call]]:
    """(name, function of the inputs) of all that can be tried here; "torch" comes first."""
    reference = partial(problem.call, impl="reference")
    calls: dict[str, Call] = {"torch": reference} | ({"rmfast": problem.call} if device.type == "cuda" else {})
    torch._dynamo.reset()
    calls["compile"] = torch.compile(reference, fullgraph=True, dynamic=False)
    for label, call in (calls | problem.rivals).items():
        if label == "torch" or against is None or label in against:
            yield label, call


def disagreement(call: Call, truth: Call, inputs: list[Any], *, backward: bool) -> str | None:
    """How far a contender is from plain torch, if it is too far to be timed: first output, and first input's gradient.

    A contender that returns the sum of the first output alone is compared with that sum.
    """
    found = []
    for function in (call, truth):
        copies = [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]
        out = function(*copies)
        head = out if isinstance(out, Tensor) else out[0]
        grad = None
        if backward and outputs_of(out):
            wanted = next(x for x in copies if isinstance(x, Tensor) and x.requires_grad)
            grad = torch.autograd.grad(head.sum(), wanted)[0].detach()
        found.append((head.detach(), grad))
    (head, grad), (true, true_grad) = found
    if head.dim() == 0 and true.dim() > 0:
        true = true.sum()
    return apart([head, grad], [true, true_grad], bf16=inputs[0].dtype == torch.bfloat16)


def time_problem(
    op: Op, problem: Problem, device: torch.device, rounds: int, against: list[str] | None
) -> tuple[dict[tuple[str, str], Row], dict[str, str]]:
    """Milliseconds by (pass, contender), who take turns; and why some dropped out."""
    passes = [FORWARD, BOTH] if op.differentiable else [FORWARD]
    failed: dict[str, str] = {}
    counts: dict[tuple[str, str], int] = {}
    ready = dict(contenders(problem, device, against))

    @cache
    def made(which: str, label: str) -> Callable[[], Any]:
        return pass_of(which, ready[label], problem.inputs)

    def timed(which: str, label: str, count: int) -> Sample:
        return measure(made(which, label), device, calls=count)

    for label, call in ready.items():
        try:
            wrong = disagreement(call, ready["torch"], problem.inputs, backward=op.differentiable)
            if wrong is not None:
                failed[label] = f"wrong: {wrong}"
                continue
            for which in passes:
                timed(which, label, 2)
                once = min(timed(which, label, 2).milliseconds)
                counts[which, label] = int(min(max(AIM_MILLISECONDS / max(once, 1e-3), 2), 100))
        except Exception as error:  # a library's own failure must not end the run; it is reported
            failed[label] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
    samples: dict[tuple[str, str], list[Sample]] = {key: [] for key in counts if key[1] not in failed}
    for _ in range(rounds):
        for key, taken in samples.items():
            taken.append(timed(*key, counts[key]))
    results = {}
    for key, taken in samples.items():
        spent = [median(sample.milliseconds) for sample in taken]
        results[key] = {"milliseconds": median(spent), "rounds": spent, "peak_bytes": taken[-1].peak_bytes}
    return results, failed


def rows_of(name: str, size: str, problem: Problem, results: dict[tuple[str, str], Row], hardware: Row) -> list[Row]:
    """A row for each pass and contender, with its ratios."""
    rows = []
    for (which, label), result in sorted(results.items(), key=lambda item: item[0][0] != FORWARD):
        at = 0 if which == FORWARD else 1
        ratio = {"speed_of_torch": results[which, "torch"]["milliseconds"] / result["milliseconds"]}
        row = {"op": name, "size": size, "pass": which, "contender": label} | result | ratio
        row |= {"bytes": problem.bytes[at], "flops": problem.flops[at]}
        rows.append(row | against_limit(row, hardware))
    return rows


def print_rows(rows: list[Row]) -> None:
    for row in rows:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        print(
            f"{row['op']:<26}{row['size']:<22}{row['pass']:<18}{row['contender']:<24}{row['milliseconds']:>10.4f}"
            f"{row['speed_of_torch']:>9.2f}{row['share_of_limit']:>8.1%}{peak:>9}"
        )


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; prints as it goes."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    settings = {"size": args.size, "rounds": args.rounds}
    about = origin(device.type) | {"threads": torch.get_num_threads(), "settings": settings}
    if device.type != "cuda":
        print("CPU: plain torch and torch.compile only; Triton needs a GPU (its interpreter says nothing about speed)")
    hardware = limits(device, small=args.size == "tiny")
    print(f"{about['device']}: copy {hardware['bandwidth'] / 1e9:.1f} GB/s, "
          f"{hardware['dtype']} matmul {hardware['matmul'] / 1e12:.2f} TFLOP/s\n{COLUMNS}")  # fmt: skip
    rows: list[Row] = []
    skipped: list[dict[str, str]] = []
    tests: dict[str, str] = {}
    known = verdicts(Results(args.suite.parent).stage(args.suite.stem)) if args.suite else {}

    def skip(op: str, what: str, why: str) -> None:
        skipped.append({"op": op, "what": what, "why": why})
        print(f"{op:<26}{what:<22}{why}", flush=True)

    for name in args.op or OPS:
        op = OPS[name]
        run_now = args.tests and args.suite is None
        tests[name] = verify.verdict(op.test) if run_now else known.get(op.test, verify.NOT_RUN)
        if run_now and tests[name] != verify.PASSED:
            print(f"{name:<26}timed although its tests fail: {tests[name]}", flush=True)
        for size, options in op.sizes.items():
            if (size == "tiny") != (args.size == "tiny") or (args.only and size not in args.only):
                continue
            torch.manual_seed(SEED)
            problem = op.make(At(device, dtype), **options)
            results, failed = time_problem(op, problem, device, args.rounds, args.against)
            for label, reason in failed.items():
                skip(name, f"{size} {label}", reason)
            if "torch" not in failed:
                fresh = rows_of(name, size, problem, results, hardware)
                print_rows(fresh)
                rows += fresh
            elif results:
                skip(name, size, "no plain torch to compare with")
    measured = [hardware, limits(device, small=args.size == "tiny")]
    best = better(measured)
    rows = [row | against_limit(row, best) for row in rows]
    found = {"limits": best, "limits_measured": measured, "results": rows, "skipped": skipped, "tests": tests}
    return about | found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--op", nargs="+", choices=list(OPS), metavar="NAME", help=f"only these: {', '.join(OPS)}")
    add("--size", choices=("tiny", "real"), default="real" if cuda else "tiny", help="(default here: %(default)s)")
    add("--only", nargs="+", metavar="NAME", help="of the sizes only these: '16384x2048', 'hh D=64', ... (cases.py)")
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu", help="(default here: %(default)s)")
    add("--against", nargs="*", help="only these beside plain torch: rmfast, compile, liger, flex, ... (default: all)")
    add("--rounds", type=int, default=7, help="medians are over these (default: %(default)s)")
    add("--no-tests", dest="tests", action="store_false", help="do not run the ops' own tests first")
    add("--suite", type=Path, metavar="FILE", help="what the tests said, as benchmarks.gpu keeps it, instead of that")
    add("--json", type=Path, help="write everything that was measured to this file")
    add("--plots", type=Path, help="draw the roofline and the ratios into this folder")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f"--rounds: must be at least 1, got {args.rounds}")
    if args.device == "cuda" and not cuda:
        parser.error("--device cuda: torch finds no CUDA device here")
    for option in ("json", "plots"):
        path = getattr(args, option)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{option}: {path.parent} is not a folder")
    if args.plots and find_spec("matplotlib") is None:
        parser.error("--plots: the package matplotlib is not installed")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if an op's tests were run and fail."""
    args = parse(arguments)
    result = bench(args)
    if args.json:
        write_json(args.json, result)
    if args.plots:
        from benchmarks import figures_plots

        figures_plots.kernels(result, args.plots)
    ran = args.tests and args.suite is None
    return int(ran and any(said != verify.PASSED for said in result["tests"].values()))


if __name__ == "__main__":
    sys.exit(main())
