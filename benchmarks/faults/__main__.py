"""Faults in tiny runs of every task and engine: python -m benchmarks.faults [--only PATTERN ...] [--again]

Kills, damaged files, signals, two starts at once, orphans, lost folders and consoles, full disks: each case lets a run
go on afterwards, and compares what it computed with a run that nothing came into, to the bit. What is allowed is what
docs/training.md says: the same weights, or an end in one line; never a traceback, never other weights in silence.
Cases are recorded in FOLDER one by one, and a second call goes on with those that are missing. Exits with 1 where one
is not right; of a rank that did not end its record has the stacks. Runs have no report, whose
plots take longer than all the rest of them.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before the imports

from benchmarks.origin import ROOT, origin  # noqa: E402

sys.path.insert(0, str(ROOT))

from benchmarks.faults import damage, disk, kills, phases, processes, signals  # noqa: E402
from benchmarks.faults.cases import run_all  # noqa: E402
from benchmarks.faults.runs import Place  # noqa: E402
from benchmarks.faults.starts import preload  # noqa: E402
from rmfast.data.files import write_text  # noqa: E402

KINDS = {"kills": kills, "phases": phases, "damage": damage, "signals": signals, "processes": processes, "disk": disk}
RESULT = ROOT / "benchmarks" / "results" / "faults.json"


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; 1 where a case is not right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", default=["*"], metavar="PATTERN", help='of names of cases, as "kills/ppo*/0"')
    add("--seed", type=int, default=0)
    add("--folder", type=Path, default=ROOT / "runs" / "faults", help="of runs and records (default: %(default)s)")
    add("--again", action="store_true", help="forget what was recorded")
    add("--json", type=Path, metavar="FILE", help=f"default, without --only: {RESULT}")
    args = parser.parse_args(words)
    folder = args.folder.absolute()
    if args.again:
        shutil.rmtree(folder, ignore_errors=True)
    preload()
    place = Place(folder)
    about, kinds = origin(), {}
    for name, kind in KINDS.items():
        records = run_all(kind.cases(place, args.seed), folder / "records.jsonl", args.only, place.remove)
        kinds[name] = kind.summary(records) | {"flaws": sum(bool(r["flaw"]) for r in records), "cases": records}
    flaws = sum(found["flaws"] for found in kinds.values())
    if file := args.json or (RESULT if args.only == ["*"] else None):
        write_text(file, json.dumps({"about": about, **kinds}).replace('{"case"', '\n{"case"') + "\n")
    print(f"{sum(len(found['cases']) for found in kinds.values())} cases, {flaws} not right")
    return int(flaws > 0)


if __name__ == "__main__":
    sys.exit(main())
