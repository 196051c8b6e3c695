"""Runs what is left of a plan within a budget of seconds, in the plan's order, and keeps every result at once."""

import contextlib
import datetime
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part, Settings, run
from benchmarks.gpu.results import Results, settled
from benchmarks.origin import write_json

SETUP = 20.0  # seconds of a call before its first part, about: imports are tried
WRAP_UP = 5.0  # seconds of a call after its last part, for the tables
PATIENCE, LEAST = 3.0, 90.0  # times as guessed, and seconds, that a part may take: one that hangs must not cost all
WORKERS = {"suite": 8}  # parts of a stage that run side by side
TAIL = 4000  # characters of a part's output that its error keeps, and five times as many the log


class Runner:
    """One call of the harness.

    Args:
        origin: device, versions and commit, kept with every result.
        budget: seconds from `start` (time.monotonic) after which nothing runs any more. Parts are started where their
            guess fits.
    """

    def __init__(
        self, settings: Settings, results: Results, origin: dict[str, Any], *, start: float, budget: float
    ) -> None:
        self.settings, self.results, self.origin = settings, results, origin
        self.end = start + budget - WRAP_UP
        self.most = min(budget - SETUP - WRAP_UP, self.end - time.monotonic() - 1.0)
        self.stopped = False
        self.pipe, self._life = os.pipe()  # commands end when the second is closed: also by the end of this process

    def run(self, plan: Sequence[Part]) -> list[Part]:
        """Run parts; those that are left for another call."""
        left = self.unsettled(plan)
        tried: set[str] = set()
        while ready := [p for p in left if p.label not in tried and time.monotonic() + p.needed <= self.end]:
            first = ready[0]
            together = list(takewhile(lambda p: p.shared and p.stage == first.stage, ready)) or [first]  # noqa: B023
            count = WORKERS.get(first.stage, 1)
            with ThreadPoolExecutor(max_workers=count if first.shared else 1) as pool:
                list(pool.map(self.one, together))
            tried |= {part.label for part in together}
            left = self.unsettled(left)
        return left

    def unsettled(self, plan: Sequence[Part]) -> list[Part]:
        """The parts that are to be run: first what was cut, or failed at another commit and may be mended."""
        records = [self.results.stage(part.stage).get(part.name) for part in plan]
        left = [(part, record) for part, record in zip(plan, records, strict=True)
                if not settled(record, self.origin.get("commit"), self.settings.lacking)]  # fmt: skip
        return [part for part, _ in sorted(left, key=lambda one: one[1] is None)]

    def too_long(self, plan: Sequence[Part]) -> list[Part]:
        """The parts that no call of this budget can start."""
        return [part for part in self.unsettled(plan) if part.needed > self.most]

    def one(self, part: Part) -> None:
        """Run a part and keep what comes out."""
        begin = time.monotonic()
        if self.stopped or begin + part.needed > self.end:  # it waited for others
            return
        print(f"{part.label} ...", flush=True)
        before = self.results.stage(part.stage).get(part.name, {})
        out = self._file(part, before.get("result"))
        seconds = min(self.end - begin, max(LEAST, PATIENCE * part.seconds))
        words = (sys.executable, "-P", "-m", *part.command, "--json", out)
        code, text = run(words, self.settings, seconds=seconds, pipe=self.pipe)
        spent = time.monotonic() - begin
        if self.stopped and code is None:  # that says nothing of the part
            return
        cut_before = before.get("status") == "cut" and before.get("commit") == self.origin.get("commit")
        over = "cut" if part.keeps or (begin + seconds >= self.end and not cut_before) else "failed"
        record: dict[str, Any] = {"status": over if code is None else "failed"}
        result = found(out)
        if result is not None and (code == 0 or (code is not None and result.get("complete"))):
            record = {"status": "done", "result": result | part.adds}  # with what of it failed, if it is complete
        elif result is not None and result.get("rounds"):
            record["result"] = result
        if record["status"] == "failed":
            how = f"did not end within {seconds:.0f} s" if code is None else f"ended with code {code}"
            record["error"] = f"{part.command[0]} {how}:\n{text[-TAIL:]}"
            print("  " + "\n  ".join(record["error"].strip().splitlines()[-6:]), flush=True)
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.results.put(part.stage, part.name, {"seconds": round(spent, 2), "when": when} | self.origin | record)
        shown = f"$ {' '.join(map(str, part.command))}\n{text[-5 * TAIL :]}"
        self.results.log(f"== {part.label} {record['status']} after {spent:.0f} s\n{shown}\n")
        print(f"{part.label}: {record['status']}, {spent:.0f} s", flush=True)

    def _file(self, part: Part, before: dict[str, Any] | None) -> Path:
        """Where the part's command writes. One that goes on where it was cut finds there what it has so far: what is in
        scratch is of this machine, and newer than what the results hold."""
        out = self.settings.scratch / part.stage / f"{part.name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        known = found(out)
        if part.keeps and known is not None and not known.get("complete", True):
            return out
        out.unlink(missing_ok=True)
        if part.keeps and before is not None:
            write_json(out, before | {"complete": False})
        return out

    def stop(self) -> None:
        """Start no part any more, and end all commands that run."""
        self.stopped = True
        with contextlib.suppress(OSError):
            os.close(self._life)


def found(path: Path) -> dict[str, Any] | None:
    """What a command wrote, if it is there and whole."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result


def calls_of(plan: Sequence[Part], budget: float) -> list[list[Part]]:
    """The plan dealt into calls of a budget by the guessed seconds, as `Runner` would with an empty folder."""
    calls: list[list[Part]] = []
    left = list(plan)
    while left:
        taken: list[Part] = []
        spent = SETUP + WRAP_UP
        for part in left:
            beside = WORKERS.get(part.stage, 1) if part.shared else 1
            if spent + part.needed / beside <= budget:
                taken.append(part)
                spent = min(budget, spent + part.seconds / beside)
        if not taken:
            raise ValueError(f"{left[0].label} takes {left[0].seconds:.0f} s: more than the budget of {budget:.0f} s")
        calls.append(taken)
        left = [part for part in left if part not in taken]
    return calls
