"""Runs what is left of a plan within a budget of seconds, in the plan's order, and keeps every result at once."""

import datetime
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

from benchmarks.gpu.parts import TAIL, Call, Cut, Failed, Part, Settings
from benchmarks.gpu.results import Results, settled

SETUP = 20.0  # seconds of a call before its first part, about: imports are tried
WRAP_UP = 5.0  # seconds of a call after its last part, for the tables
PATIENCE, LEAST = 3.0, 90.0  # times as guessed, and seconds, that a part may take: one that hangs must not cost all
WORKERS = {"suite": 8, "real": 4}  # parts of a stage that run side by side


class Runner:
    """One call of the harness.

    Args:
        origin: device, versions and commit, kept with every result.
        budget: seconds from `start` (time.monotonic) after which nothing runs any more. Parts are started where their
            guess fits.
        workers: parts side by side; None for `WORKERS`.
    """

    def __init__(
        self, settings: Settings, results: Results, origin: dict[str, Any], *, start: float, budget: float,
        workers: int | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.results, self.origin = settings, results, origin
        self.end = start + budget - WRAP_UP
        self.most = min(budget - SETUP - WRAP_UP, self.end - time.monotonic() - 1.0)
        self.workers = workers
        self.calls: set[Call] = set()
        self.stopped = False

    def run(self, plan: Sequence[Part]) -> list[Part]:
        """Run parts; those that are left for another call."""
        left = self.unsettled(plan)
        tried: set[str] = set()
        while True:
            ready = [p for p in left if p.label not in tried and time.monotonic() + self.needed(p) <= self.end]
            if not ready:
                break
            first = ready[0]
            together = list(takewhile(lambda p: p.shared and p.stage == first.stage, ready)) or [first]  # noqa: B023
            count = self.workers or WORKERS.get(first.stage, 1)
            with ThreadPoolExecutor(max_workers=count if first.shared else 1) as pool:
                list(pool.map(self.one, together))
            tried |= {part.label for part in together}
            left = self.unsettled(left)
        return left

    def unsettled(self, plan: Sequence[Part]) -> list[Part]:
        """The parts that are to be run: first what was cut, or failed at another commit and may be mended; last what
        failed at this one."""
        commit = self.origin.get("commit")
        records = [self.results.stage(part.stage).get(part.name) for part in plan]
        left = [(part, record) for part, record in zip(plan, records, strict=True)
                if not settled(record, commit, self.settings.lacking)]  # fmt: skip

        def place(record: dict[str, Any] | None) -> int:
            if record is None:
                return 1
            return 2 if record["status"] == "failed" and record.get("commit") == commit else 0

        return [part for part, record in sorted(left, key=lambda one: place(one[1]))]

    def too_long(self, plan: Sequence[Part]) -> list[Part]:
        """The parts that no call of this budget can start."""
        return [part for part in self.unsettled(plan) if (part.first or part.seconds) > self.most]

    def expected(self, part: Part) -> float:
        """Seconds that a part may take: as guessed, or half as long again as it was given when it was cut off, but no
        more than a call has for its first part. One that goes on where it was cut keeps its guess."""
        before = self.results.stage(part.stage).get(part.name, {})
        if before.get("status") != "cut" or part.keeps:
            return part.seconds
        return max(part.seconds, min(1.5 * before["seconds"], self.most))

    def needed(self, part: Part) -> float:
        """Seconds that must be left for a part to start."""
        return self.expected(part) if part.first is None else min(part.first, self.expected(part))

    def one(self, part: Part) -> None:
        """Run a part and keep what comes out."""
        begin = time.monotonic()
        if self.stopped or begin + self.needed(part) > self.end:  # it waited for others
            return
        call = Call(self.settings, min(self.end, begin + max(LEAST, PATIENCE * self.expected(part))))
        self.calls.add(call)
        print(f"{part.label} ...", flush=True)
        record: dict[str, Any]
        try:
            record = {"status": "done", "result": part.run(call)}
        except Cut:
            record = {"status": "cut"}
        except Failed as error:
            record = {"status": "failed", "error": str(error)}
        except Exception as error:  # one part's mistake must not cost the others their time; it is kept and shown
            record = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        finally:
            self.calls.discard(call)
        if self.stopped and record["status"] != "done":  # that is no try of the part's
            return
        if record["status"] != "done" and call.reached is not None:
            record["result"] = call.reached
        seconds = time.monotonic() - begin
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.results.record(
            part.stage, part.name, keeps=part.keeps, seconds=round(seconds, 2), when=when, **self.origin, **record
        )
        output = "\n".join(call.written)
        self.results.log(f"== {part.label} {record['status']} after {seconds:.0f} s\n{output[-5 * TAIL :]}\n")
        print(f"{part.label}: {record['status']}, {seconds:.0f} s", flush=True)
        if record["status"] == "failed":
            print("  " + "\n  ".join(record["error"].strip().splitlines()[-6:]), flush=True)

    def stop(self) -> None:
        """Start no part any more, and end all commands that run."""
        self.stopped = True
        for call in list(self.calls):
            call.stop()


def calls_of(plan: Sequence[Part], budget: float) -> list[list[Part]]:
    """The plan dealt into calls of a budget by the guessed seconds, as `Runner` would with an empty folder."""
    calls: list[list[Part]] = []
    left = list(plan)
    while left:
        taken: list[Part] = []
        spent = SETUP + WRAP_UP
        for part in left:
            beside = WORKERS.get(part.stage, 1) if part.shared else 1
            if spent + (part.first or part.seconds) / beside <= budget:
                taken.append(part)
                spent = min(budget, spent + part.seconds / beside)
        if not taken:
            raise ValueError(f"{left[0].label} takes {left[0].seconds:.0f} s: more than the budget of {budget:.0f} s")
        calls.append(taken)
        left = [part for part in left if part not in taken]
    return calls
