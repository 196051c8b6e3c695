"""A case of a fault, and how it is run once: what was recorded before is not run again."""

import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.faults.results import lines_of
from benchmarks.faults.starts import hangs
from benchmarks.origin import commit


@dataclass(frozen=True)
class Case:
    """One fault in one run. `run` returns its figures; "flaw" says what is not right, and is empty where all is."""

    name: str
    run: Callable[[], dict[str, Any]]


def run_all(
    cases: Iterable[Case], file: Path, only: Iterable[str], scratch: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The records of all cases whose names one of the patterns fits; those in `file` are not run again.

    Args:
        scratch: takes away what a case needs no more, by its name.
    """
    before = {record["case"]: record for record in lines_of(file)}
    found = []
    for case in cases:
        if not any(fnmatch(case.name, pattern) for pattern in only):
            continue
        if case.name not in before:
            scratch(case.name)
            text = json.dumps(_record(case)).replace(f"{file.parent}/", "FOLDER/")
            before[case.name] = record = json.loads(text)
            with file.open("a", encoding="utf-8") as out:
                out.write(text + "\n")
            if not record["flaw"]:
                scratch(case.name)
            print(f"{case.name}: {record['flaw'] or record.get('outcome', 'right')}", flush=True)
        found.append(before[case.name])
    return found


def _record(case: Case) -> dict[str, Any]:
    began = time.monotonic()
    hangs.clear()
    try:
        found = case.run()
    except Exception:  # of the check itself
        found = {"flaw": f"the case failed: {traceback.format_exc()[-1500:]}"}
    if hangs:
        found["hangs"] = list(hangs)
    return {"case": case.name, **found, "seconds": round(time.monotonic() - began, 2), "commit": commit()}
