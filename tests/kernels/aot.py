"""Compile every Triton kernel for sm_80 and sm_90 without a GPU, and hold what the compiler made against a golden file.

    python tests/kernels/aot.py [--update] [--changed] [--op NAME ...] [--arch 80,90] [--json OUT]

The ops run on small CPU tensors while `rmfast.kernels.launch.recording` collects what they would start on such a
device; each distinct start is compiled once. Always refused: spills, more shared memory than the device has, a bf16
matrix product without tensor cores (on sm_90: without HGMMA, unless its tile has fewer than 64 rows, which HGMMA
cannot do, and all of a kernel's products by HGMMA or none), a matrix product of fp32 in a kernel that is given bf16, or
in tf32 (up to Triton 3.7 the compiler makes such of sums), a loop around a product that may begin or end at a sentinel,
more instructions in an inner loop of attention than `LOOPS` has, a kernel that no case starts. With the golden file's
Triton version also: more registers, shared memory or instructions of the inner loop than it says, tensor cores that are
no longer used, kernels that it lacks or that are gone. `--update` writes it again, faults or not, with `--op` the
kernels of these ops alone; commit it with the change that explains it.

The same source gives the same code: `--changed`, which the tests run, compiles only kernels whose `source` is not that
of the golden file, where it is of this Triton. It notes no source of a kernel with a fault.
"""

import argparse
import hashlib
import inspect
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton

if __name__ == "__main__":  # run as a file, the path begins with this folder instead of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.kernels.cases import OPS
from rmfast.kernels import common
from rmfast.kernels.launch import OPTIONS
from tests.kernels import compiled
from tests.kernels.compiled import Built, build
from tests.kernels.variants import KERNELS, Variant, collect, specialise, variant

GOLDEN = Path(__file__).with_name("aot_golden.json")
UPDATE = "python tests/kernels/aot.py --update"
SHARED_LIMIT = {80: 166912, 90: 232448}  # bytes that one block may use
MORE_REGISTERS, MORE_SHARED = 8, 1024  # than the golden file before it counts as a change for the worse
MORE_INSTRUCTIONS = 1.05  # times as many
HGMMA_ROWS = 64  # of its smallest tile
# Instructions of a step at head dimension 64 on sm_90, at most, by any compiler: not the tensor cores but masks and
# exponentials bound attention. A window costs a few more, a softcap many.
LOOPS = {"prefix_attention_fwd_kernel": 575, "prefix_attention_dq_kernel": 250, "prefix_attention_dkv_kernel": 440}
LOOPS_OF = {"DIM": 64, "ROWS": False, "WINDOW": 0, "SOFTCAP": 0.0}
PROCESSES = 2


def _cause(error: BaseException) -> str:
    """The innermost error in one line, with the line of the kernel that it arose in."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and set(line.strip()) != {"^"}]
    return f"{type(error).__name__}: {' | '.join(lines[-2:])}"


def _attempt(variants: list[Variant], index: int) -> tuple[int, Built | str]:
    try:
        v = variants[index]
        return index, build(v.kernel, v.signature, v.constants, v.attributes, v.options, v.arch)
    except Exception as error:  # the compiler's errors have no common class; each is reported, none ends the others
        return index, _cause(error)


_work: list[Variant] = []


def _attempt_shared(index: int) -> tuple[int, Built | str]:
    return _attempt(_work, index)


def rules() -> str:
    """What decides, beside a kernel and its variants' names, what is compiled and what is a fault."""
    numbers = (SHARED_LIMIT, HGMMA_ROWS, LOOPS, LOOPS_OF, OPTIONS)
    texts = [inspect.getsource(one) for one in (compiled, hard_faults, specialise, variant)]
    return "\n".join([*texts, repr(numbers)])


def source(kernel: Any) -> str:
    """A digest of a kernel, of all that it calls, and of the rules."""
    return hashlib.sha256(f"{kernel.cache_key}\n{rules()}".encode()).hexdigest()[:16]


def build_all(variants: list[Variant], processes: int = PROCESSES) -> list[Built | str]:
    """All variants, compiled in forked processes: kernels cannot be pickled. An error comes back as its text."""
    global _work
    _work = variants
    results: dict[int, Built | str] = {}
    if processes == 1:
        return [_attempt(variants, i)[1] for i in range(len(variants))]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        results.update(pool.imap_unordered(_attempt_shared, range(len(variants))))
    return [results[i] for i in range(len(variants))]


def hard_faults(one: Variant, made: Built | str) -> list[str]:
    """What no kernel may do, whatever the compiler's version."""
    if isinstance(made, str):
        return [f"does not compile: {made}"]
    faults = []
    if made.spills or made.stack:
        faults.append(f"spills: {made.spills} local loads and stores, stack {made.stack} B, {made.registers} registers")
    if made.shared > SHARED_LIMIT[one.arch]:
        faults.append(f"{made.shared} B of shared memory, the device has {SHARED_LIMIT[one.arch]}")
    wanted = "HGMMA" if one.arch >= 90 and made.rows >= HGMMA_ROWS else "HMMA"
    if made.rows and not (made.hgmma if wanted == "HGMMA" else made.hgmma + made.hmma):
        faults.append(f"multiplies bf16 matrices without {wanted}")
    if one.arch >= 90 and made.hgmma and made.hmma:
        faults.append(f"multiplies bf16 matrices by {made.hgmma} HGMMA and {made.hmma} HMMA")
    most = LOOPS.get(one.kernel.__name__) if one.arch >= 90 and LOOPS_OF.items() <= one.constants.items() else None
    if made.rows and most is not None and not 0 < made.loop <= most:
        faults.append(f"{made.loop} instructions in its inner loop, at most {most} are allowed")
    if made.sentinels:
        faults.append(f"{made.sentinels} loops around a matrix product may begin or end at a sentinel")
    if made.widened:
        faults.append(f"is given bf16, but {made.widened} of its matrix products are in fp32")
    if made.tf32:
        faults.append(f"{made.tf32} of its matrix products are in tf32")
    return faults


def figures(made: Built) -> list[int]:
    """Registers, shared bytes, HGMMA, HMMA and instructions of the inner loop."""
    return [made.registers, made.shared, made.hgmma, made.hmma, made.loop]


def changes(made: Built, golden: list[int]) -> list[str]:
    """In what a kernel is worse than the golden file's `figures`."""
    registers, shared, hgmma, hmma, loop = golden
    worse = []
    if made.registers > registers + MORE_REGISTERS:
        worse.append(f"{made.registers} registers, golden {registers}")
    if made.shared > shared + MORE_SHARED:
        worse.append(f"{made.shared} B of shared memory, golden {shared}")
    if made.loop > loop * MORE_INSTRUCTIONS:
        worse.append(f"{made.loop} instructions in its inner loop, golden {loop}")
    for name, now, before in (("HGMMA", made.hgmma, hgmma), ("HMMA", made.hmma, hmma)):
        if before and not now:
            worse.append(f"no {name} any more, golden {before}")
    return worse


def build_changed(variants: list[Variant], golden: dict[str, Any], processes: int) -> list[Built | str | None]:
    """The variants of kernels whose source is not the golden file's; None for the others."""
    known = golden.get("sources", {}) if golden.get("triton") == triton.__version__ else {}
    sources = {v.kernel.__name__: source(v.kernel) for v in variants}
    changed = [v for v in variants if known.get(v.kernel.__name__) != sources[v.kernel.__name__]]
    made = dict(zip(map(id, changed), build_all(changed, processes), strict=True))
    return [made.get(id(v)) for v in variants]


def judge(
    variants: list[Variant], built: Sequence[Built | str | None], golden: dict[str, Any], *, whole: bool
) -> list[str]:
    """Everything that is wrong, a line each.

    Args:
        built: None: known to be as the golden file says.
        golden: the file's content; its numbers count only for the Triton that they were taken with.
        whole: all ops were built, so that a golden entry without a kernel is one that is gone.
    """
    lines = [f"sm_{v.arch} {v.name}: {fault}" for v, made in zip(variants, built, strict=True)
             if made is not None for fault in hard_faults(v, made)]  # fmt: skip
    if golden.get("triton") != triton.__version__:
        return lines
    unknown, gone = 0, 0
    for v, made in zip(variants, built, strict=True):
        entry = golden["kernels"].get(f"sm_{v.arch}", {}).get(v.name)
        if isinstance(made, str):
            continue
        if entry is None:
            lines.append(f"sm_{v.arch} {v.name}: not in the golden file")
            unknown += 1
        elif made is not None:
            lines += [f"sm_{v.arch} {v.name}: {change}" for change in changes(made, entry)]
    if whole:
        names = {(v.arch, v.name) for v in variants}
        for arch in sorted({v.arch for v in variants}):
            entries = golden["kernels"].get(f"sm_{arch}", {})
            missing = [name for name in entries if (arch, name) not in names]
            lines += [f"sm_{arch} {name}: in the golden file, but no case starts it" for name in missing]
            gone += len(missing)
    if unknown or gone:
        lines.append(f"kernels were added or changed: if that is meant, run `{UPDATE}` and commit {GOLDEN.name}")
    return lines


def as_golden(variants: list[Variant], built: Sequence[Built | str | None], others: dict[str, Any]) -> dict[str, Any]:
    """The golden file's content: `figures` per architecture and kernel, and the kernels' sources; of kernels that were
    not built, what `others` has."""
    started = {v.kernel.__name__ for v in variants}
    faulty = {
        v.kernel.__name__ for v, made in zip(variants, built, strict=True) if made is None or hard_faults(v, made)
    }
    sources = {name: text for name, text in others.get("sources", {}).items() if name not in started}
    sources |= {v.kernel.__name__: source(v.kernel) for v in variants if v.kernel.__name__ not in faulty}
    kernels = {
        arch: {name: row for name, row in rows.items() if name.split("(")[0] not in started}
        for arch, rows in others["kernels"].items()
    }
    for v, made in zip(variants, built, strict=True):
        if isinstance(made, Built):
            kernels.setdefault(f"sm_{v.arch}", {})[v.name] = figures(made)
    return {"triton": triton.__version__, "sources": sources, "kernels": kernels}


def write_golden(golden: dict[str, Any], path: Path) -> None:
    """One kernel a line, so that a change reads well in a diff."""
    text = json.dumps(golden, indent=1, sort_keys=True)
    text = re.sub(r"\[\s+(\d[\d,\s]*?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def print_built(variants: list[Variant], built: Sequence[Built | str | None]) -> None:
    print(f"{'arch':<6}{'regs':>5}{'shared':>8}{'spills':>7}{'HGMMA':>6}{'HMMA':>6}{'loop':>6}{'s':>6}  kernel")
    for v, made in zip(variants, built, strict=True):
        if isinstance(made, Built):
            columns = (made.registers, made.shared, made.spills, made.hgmma, made.hmma, made.loop)
            cells = "".join(f"{x:>{w}}" for x, w in zip(columns, (5, 8, 7, 6, 6, 6), strict=True))
            print(f"sm_{v.arch:<3}{cells}{made.seconds:>6.1f}  {v.name}")


def uncovered(variants: list[Variant]) -> list[str]:
    """Kernels of the package that no case starts."""
    started = {v.kernel.__name__ for v in variants}
    return [f"{name} ({module}): no case in benchmarks/kernels/cases.py starts it"
            for name, module in KERNELS.items() if name not in started]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--update", action="store_true", help="write the golden file")
    add("--op", nargs="+", choices=sorted(OPS), metavar="NAME", help=f"only these: {', '.join(sorted(OPS))}")
    add("--arch", default="80,90", help="compute capabilities (default: %(default)s)")
    add("--changed", action="store_true", help="compile only kernels of another source than the golden file's")
    add("--golden", type=Path, default=GOLDEN, help=argparse.SUPPRESS)
    add("--json", type=Path, help="write all figures to this file")
    add("--processes", type=int, default=PROCESSES, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    if common.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: there is nothing to compile in the interpreter")
    try:
        archs = [int(a) for a in args.arch.split(",")]
        unknown = [a for a in archs if a not in SHARED_LIMIT]
    except ValueError:
        archs, unknown = [], [args.arch]
    if unknown:
        parser.error(f"--arch: known are {', '.join(map(str, SHARED_LIMIT))}, got {unknown[0]}")
    if args.update and (archs != sorted(SHARED_LIMIT) or args.changed):
        parser.error("--update writes both architectures and all their kernels: leave out --arch and --changed")
    start = time.perf_counter()
    ops = args.op or sorted(OPS)
    variants = [v for arch in archs for v in collect(arch, ops)]
    golden = json.loads(args.golden.read_text(encoding="utf-8")) if args.golden.is_file() else {"kernels": {}}
    built: Sequence[Built | str | None]
    built = build_changed(variants, golden, args.processes) if args.changed else build_all(variants, args.processes)
    print_built(variants, built)
    if args.update:
        if args.op and golden.get("triton") != triton.__version__:
            parser.error(f"the golden file is not of Triton {triton.__version__}: leave out --op")
        golden = as_golden(variants, built, golden if args.op else {"kernels": {}})
        write_golden(golden, args.golden)
    faults = judge(variants, built, golden, whole=not args.op) + ([] if args.op else uncovered(variants))
    if args.json:
        rows = [{"arch": v.arch, "op": v.op, "kernel": v.name} | (asdict(made) if isinstance(made, Built) else
                {"error": made}) for v, made in zip(variants, built, strict=True) if made is not None]  # fmt: skip
        args.json.write_text(json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n")
    for line in faults:
        print(f"FAULT {line}")
    held = "all rules" if golden.get("triton") == triton.__version__ else "the hard rules (golden: another Triton)"
    seconds = time.perf_counter() - start
    number = sum(made is not None for made in built)
    print(
        f"{number} of {len(variants)} kernels compiled in {seconds:.0f} s, Triton {triton.__version__}, {held}: "
        f"{len(faults)} faults"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
