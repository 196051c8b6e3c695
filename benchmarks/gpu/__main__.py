"""Everything that needs a GPU, in calls of some minutes: `python -m benchmarks.gpu --out FOLDER` until nothing is left.

    python -m benchmarks.gpu --wheels FOLDER                            packages for a machine without an index
    python -m benchmarks.gpu --check                                    what is missing, before time is spent
    python -m benchmarks.gpu --out FOLDER                               do as much as fits into --budget seconds

Finished parts are in FOLDER and not done again; FOLDER may be carried to another machine of the same kind. README.md
beside this says what each stage measures.
"""

import argparse
import platform
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu import check, plan, wheels
from benchmarks.gpu.parts import Part, Settings
from benchmarks.gpu.results import STAGES, Results
from benchmarks.gpu.runner import SETUP, WRAP_UP, Runner, calls_of
from benchmarks.origin import commit, versions
from rmfast.errors import UserError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, help="folder of results")
    add("--budget", type=float, default=480.0, help="seconds after which nothing runs any more (default: %(default)s)")
    add("--only", nargs="+", metavar="PART", help="only parts whose STAGE/NAME holds one of these words")
    add("--first", nargs="+", metavar="PART", help="these parts before all others but those that may be mended")
    add("--again", nargs="+", metavar="PART", help="do these parts again, if they are done or failed")
    add("--size", choices=("real", "tiny"), default="real", help="tiny: on a CPU, to check the harness")
    add("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "rmfast-gpu", help="(default: %(default)s)")
    add("--commit", help="of this tree; must be given where there is no git")
    add("--mix", action="store_true", help="go on with results of another commit, other versions or another device")
    add("--wheels", type=Path, metavar="FOLDER", help="download what a machine without an index lacks, and no more")
    add("--check", action="store_true", help="say what is missing and how the plan falls into calls; 1 if anything is")
    args = parser.parse_args(arguments)
    if args.out is None and not args.check and args.wheels is None:
        parser.error("--out: name a folder for the results")
    if args.budget <= 0:
        parser.error("--budget must be positive")
    return args


def tables(results: Results, left: list[Part]) -> None:
    """All figures that are there, and what is left."""
    for stage in STAGES:
        if records := results.stage(stage):
            print(f"\n== {stage}", *plan.LINES[stage](records), sep="\n")
            for name, record in records.items():
                if record["status"] != "done":
                    print(f"  {name}: {record['status']}")
    print(f"\n{len(left)} parts left" + (f": {', '.join(part.label for part in left[:12])}" if left else ""))


def too_long(part: Part, budget: float) -> str:
    """Why a part can never start."""
    why = f"{part.label} takes about {part.seconds:.0f} s and can never start"
    return f"--budget {budget:.0f}: {why}; give {part.seconds + SETUP + WRAP_UP + 5:.0f} or more"


def writable(option: str, folder: Path) -> None:
    """Make a folder, and remove what calls that were killed left half written in it.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for path in folder.glob(".*.partial*"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written to ({error.strerror}); name another folder") from error


def chosen(option: str, words: list[str] | None, parts: list[Part]) -> list[Part]:
    """Parts whose label holds one of some words.

    Raises:
        UserError: a word is in none.
    """
    for word in words or ():
        if not any(word in part.label for part in parts):
            raise UserError(f"{option} {word}: in the name of no part; {', '.join(part.label for part in parts)}")
    return [part for part in parts if any(word in part.label for word in words or ())]


def report(args: argparse.Namespace, settings: Settings, device: dict[str, Any], parts: list[Part]) -> int:
    """Print what `--check` says; 1 if something is missing or a part can never start."""
    print("\n".join(check.report(settings, device, parts)))
    long = [part for part in parts if part.seconds + SETUP + WRAP_UP > args.budget]
    for part in long:
        print(too_long(part, args.budget))
    for number, call in enumerate(calls_of([part for part in parts if part not in long], args.budget), 1):
        print(f"call {number}: {', '.join(part.label for part in call)}")
    return int(bool(settings.lacking or long))


def forbidden(args: argparse.Namespace, device: dict[str, Any], origin: dict[str, Any], results: Results) -> str | None:
    """Why nothing may run now, or None."""
    if origin["commit"] is None:
        return "--commit: this tree has no .git; name the commit that it is of"
    if (other := check.other_origin(results, origin)) and not args.mix:
        return f"--out {args.out}: {other}; name another folder, or --mix to have both in it"
    if args.size == "real" and not device["cuda"]:
        return "torch finds no CUDA device; --size tiny checks the harness on a CPU"
    if args.size == "real" and (busy := check.others()):
        return f"other processes compute on the device; end them first: {'; '.join(busy)}"
    return None


def work(args: argparse.Namespace, start: float) -> int:
    """The entry point's work."""
    if args.wheels is not None:
        print("\n".join(wheels.download(args.wheels)))
        return 0
    tiny = args.size == "tiny"
    device = {"cuda": False, "capability": 0, "memory_gib": 0.0} if tiny else check.probe()
    settings = Settings(
        out=(args.out or Path()).resolve(), scratch=args.scratch.resolve(), tiny=tiny,
        device="cuda" if device["cuda"] else "cpu", arch=device["capability"] or 90,
    )  # fmt: skip
    parts = plan.parts(settings)
    again = chosen("--again", args.again, parts)
    parts = chosen("--only", args.only, parts) if args.only else parts
    first = chosen("--first", args.first, parts)
    results = Results(args.out or Path())
    name = "tiny" if tiny else device.get("name", "none")
    found = {"python": platform.python_version()} | versions()
    origin = {"device": name, "versions": found, "commit": args.commit or commit(), "size": args.size}
    if not args.check and (why := forbidden(args, device, origin, results)):
        print(f"error: {why}", file=sys.stderr)
        return 1
    lacking = check.missing(settings)
    settings = replace(settings, lacking=lacking)
    labels, before = ({part.label for part in some} for some in (parts, first))
    parts = [part for part in plan.parts(settings) if part.label in labels]  # now that it is known what is lacking
    parts.sort(key=lambda part: part.label not in before)
    if args.check:
        return report(args, settings, device, parts)
    for name, why in lacking.items():
        print(f"{name}: {why}")
    for part in [part for part in parts if check.blocked(part, lacking)]:
        print(f"{part.label}: left out for want of {check.blocked(part, lacking)[0]}")
        parts.remove(part)
    for folder in (("--out", args.out), ("--scratch", args.scratch)):
        writable(*folder)
    for part in again:
        results.put(part.stage, part.name, None)
    runner = Runner(settings, results, origin, start=start, budget=args.budget)
    long = runner.too_long(parts)
    for part in long:
        print(f"error: {too_long(part, args.budget)}", file=sys.stderr)
        parts.remove(part)

    def end(number: int, _frame: FrameType | None) -> None:
        runner.stop()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)
    left = runner.run(parts)
    tables(results, left)
    return 3 if left else int(bool(lacking or long))


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 if nothing is left, 3 if another call is needed, 1 if something is missing or cannot be used;
    2 for bad input."""
    start = time.monotonic()
    args = parse(arguments)
    try:
        return work(args, start)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
