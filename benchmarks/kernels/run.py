"""Times the ops of rmfast.kernels against plain torch, torch.compile, libraries, another revision, and the hardware.

    python benchmarks/kernels/run.py [--op NAME ...] [--size tiny|real] [--device cpu|cuda] [--base GITREF]
                                     [--json OUT] [--plots FOLDER] [--rounds N]

bf16 on a GPU; on a CPU fp32 and plain torch only, for Triton's interpreter says nothing about speed. README.md tells
how to read the columns.
"""

import argparse
import contextlib
import datetime
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: the repository's root instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from benchmarks.kernels import verify
from benchmarks.kernels.contenders import BOTH, FORWARD, ROOT, SEED, Contender, Local, Remote, Revision, disagreement
from benchmarks.kernels.registry import OPS, Op, Problem, public
from benchmarks.kernels.timing import bandwidth, matmul_rate

AIM_MILLISECONDS = 60.0  # that a contender spends in a round on one pass
PACKAGES = ("torch", "triton", "liger_kernel", "numpy")
COLUMNS = f"{'op':<26}{'size':<22}{'pass':<18}{'contender':<24}{'ms':>10}{'x torch':>9}{'limit':>8}{'MiB':>9}"


def processor() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def about(device: torch.device) -> dict[str, Any]:
    """Device, versions, commit and whether files differ from it."""

    def git(*arguments: str) -> str | None:
        if shutil.which("git") is None:
            return None
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    changed = git("status", "--porcelain", "--", "kernels", "rmfast", "benchmarks")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "date": datetime.date.today().isoformat(),
    }


def limits(device: torch.device, *, small: bool) -> dict[str, Any]:
    """What this device does now: bytes/s of a copy, FLOP/s of a matrix product."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size, width = (1 << 24, 512) if small else (1 << 30, 8192) if device.type == "cuda" else (1 << 28, 2048)
    rate = matmul_rate(device, dtype, width=width)
    return {"bandwidth": bandwidth(device, size=size), "matmul": rate, "dtype": str(dtype).removeprefix("torch.")}


def better(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The best rates of several measurements of the limits: a ceiling that is too low would flatter the kernels."""
    return measured[0] | {name: max(each[name] for each in measured) for name in ("bandwidth", "matmul")}


def contenders(
    problem: Problem, name: str, size: str, device: torch.device, base: Revision | None, against: list[str] | None
) -> Iterator[tuple[str, Callable[..., Any] | None, Contender]]:
    """(name, its function if it runs here, contender) of all that can be tried; "torch" comes first."""
    reference = partial(problem.call, impl="reference")
    calls: dict[str, Callable[..., Any]] = {"torch": reference}
    if device.type == "cuda":
        calls["rmfast"] = problem.call
    torch._dynamo.reset()
    calls["compile"] = torch.compile(reference, fullgraph=True, dynamic=False)
    for label, call in (calls | problem.rivals).items():
        if label == "torch" or against is None or label in against:
            yield label, call, Local(call, problem.inputs, device)
    if base is not None:
        yield "base", None, Remote(base, name, size)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def time_problem(
    op: Op, problem: Problem, ready: list[tuple[str, Callable[..., Any] | None, Contender]], rounds: int
) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, str]]:
    """Milliseconds by (pass, contender), and why contenders dropped out."""
    passes = [FORWARD, BOTH] if op.differentiable else [FORWARD]
    failed: dict[str, str] = {}
    calls: dict[tuple[str, str], int] = {}
    truth = next(call for label, call, _ in ready if label == "torch")
    assert truth is not None
    for label, call, contender in ready:
        try:
            if call is not None and label != "torch":
                wrong = disagreement(call, truth, problem.inputs, backward=op.differentiable)
                if wrong is not None:
                    failed[label] = f"wrong: {wrong}"
                    continue
            for which in passes:
                contender.time(which, 2)
                once = min(contender.time(which, 2).milliseconds)
                calls[which, label] = int(min(max(AIM_MILLISECONDS / max(once, 1e-3), 2), 100))
        except Exception as error:  # a library's own failure must not end the run; it is reported
            failed[label] = first_line(error)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in calls if key[1] not in failed}
    peaks: dict[tuple[str, str], int | None] = {}
    for _ in range(rounds):
        for label, _call, contender in ready:
            for which in passes if label not in failed else []:
                sample = contender.time(which, calls[which, label])
                times[which, label].append(median(sample.milliseconds))
                peaks[which, label] = sample.peak_bytes
    results = {
        key: {"milliseconds": median(spent), "rounds": spent, "peak_bytes": peaks[key]} for key, spent in times.items()
    }
    return results, failed


def rows_of(
    name: str, size: str, problem: Problem, results: dict[tuple[str, str], dict[str, Any]], hardware: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each pass and contender, with its ratios."""
    rows = []
    for (which, label), result in sorted(results.items(), key=lambda item: item[0][0] != FORWARD):
        at = 0 if which == FORWARD else 1
        ratio = {"speed_of_torch": results[which, "torch"]["milliseconds"] / result["milliseconds"]}
        ours = results.get((which, "rmfast"), results[which, "torch"])
        if label == "base":
            ratio["base_over_now"] = result["milliseconds"] / ours["milliseconds"]
        row = {"op": name, "size": size, "pass": which, "contender": label} | result | ratio
        row |= {"bytes": problem.bytes[at], "flops": problem.flops[at]}
        rows.append(row | against_limit(row, hardware))
    return rows


def against_limit(row: dict[str, Any], hardware: dict[str, Any]) -> dict[str, Any]:
    """The least time that a row's bytes and FLOPs take at the hardware's rates, and its share of the time taken."""
    memory, compute = row["bytes"] / hardware["bandwidth"], row["flops"] / hardware["matmul"]
    limit = 1e3 * max(memory, compute)
    return {
        "limit_milliseconds": limit,
        "share_of_limit": limit / row["milliseconds"],
        "limit_by": "memory" if memory >= compute else "matmul",
    }


def print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        note = f"  base / now {row['base_over_now']:.3f}" if "base_over_now" in row else ""
        print(
            f"{row['op']:<26}{row['size']:<22}{row['pass']:<18}{row['contender']:<24}{row['milliseconds']:>10.4f}"
            f"{row['speed_of_torch']:>9.2f}{row['share_of_limit']:>8.1%}{peak:>9}{note}"
        )


@contextlib.contextmanager
def revision(ref: str | None, device: torch.device) -> Iterator[Revision | None]:
    """A process that runs rmfast as of a git ref, from a work tree that goes away with it."""
    if ref is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rmfast-base-") as folder:
        tree = Path(folder).resolve() / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), ref], check=True, capture_output=True, text=True)
        try:
            process = Revision(tree, device)
            try:
                yield process
            finally:
                process.close()
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; prints as it goes."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    settings = {"size": args.size, "rounds": args.rounds, "base": args.base}
    result: dict[str, Any] = about(device) | {"settings": settings}
    if device.type != "cuda":
        print("CPU: plain torch and torch.compile only; Triton needs a GPU (its interpreter says nothing about speed)")
    hardware = limits(device, small=args.size == "tiny")
    print(f"{result['device']}: copy {hardware['bandwidth'] / 1e9:.1f} GB/s, "
          f"{hardware['dtype']} matmul {hardware['matmul'] / 1e12:.2f} TFLOP/s\n{COLUMNS}")  # fmt: skip
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    tests: dict[str, str] = {}

    def skip(op: str, what: str, why: str) -> None:
        skipped.append({"op": op, "what": what, "why": why})
        print(f"{op:<26}{what:<22}{why}", flush=True)

    with revision(args.base, device) as base:
        for name in args.op or OPS:
            op = OPS[name]
            try:
                public(name)
            except AttributeError:
                skip(name, "", "not in rmfast.kernels")
                continue
            tests[name] = verify.verdict(op.test) if args.tests else verify.NOT_RUN
            if tests[name] not in (verify.PASSED, verify.NOT_RUN):
                print(f"{name:<26}timed although its tests fail: {tests[name]}", flush=True)
            for size, options in op.sizes.items():
                if (size == "tiny") != (args.size == "tiny") or (args.only and size not in args.only):
                    continue
                torch.manual_seed(SEED)
                problem = op.build(device, dtype, **options)
                ready = list(contenders(problem, name, size, device, base, args.against))
                results, failed = time_problem(op, problem, ready, args.rounds)
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
    if best != hardware:
        print(f"limits again at the end: copy {measured[1]['bandwidth'] / 1e9:.1f} GB/s, matmul "
              f"{measured[1]['matmul'] / 1e12:.2f} TFLOP/s; shares in the result are of the better")  # fmt: skip
    rows = [row | against_limit(row, best) for row in rows]
    found = {"limits": best, "limits_measured": measured, "results": rows, "skipped": skipped, "tests": tests}
    return result | found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    add("--op", nargs="+", choices=list(OPS), metavar="NAME", help=f"only these: {', '.join(OPS)}")
    add("--size", choices=("tiny", "real"), default="real" if cuda else "tiny", help="(default here: %(default)s)")
    add("--only", nargs="+", metavar="NAME", help="of the sizes only these: '16384x2048', 'hh D=64', ... (registry.py)")
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu", help="(default here: %(default)s)")
    add("--against", nargs="*", help="only these beside plain torch: rmfast, compile, liger, flex, ... (default: all)")
    add("--base", metavar="GITREF", help="also time rmfast as of this revision, in turns with this one")
    add("--rounds", type=int, default=7, help="medians are over these (default: %(default)s)")
    add("--no-tests", dest="tests", action="store_false", help="do not run the ops' own tests first")
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
    """Entry point; 1 if an op's tests fail."""
    args = parse(arguments)
    try:
        result = bench(args)
    except subprocess.CalledProcessError as error:
        print(f"error: --base {args.base}: {(error.stderr or str(error)).strip()}", file=sys.stderr)
        return 2
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plots:
        from benchmarks.kernels.plots import draw

        draw(result, args.plots)
    return int(any(said not in (verify.PASSED, verify.NOT_RUN) for said in result["tests"].values()))


if __name__ == "__main__":
    sys.exit(main())
