"""A test file, or one test of it, in a process of its own: `python -m benchmarks.gpu.testing FILE[::TEST] OUT.json`."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

SHOWN = 20  # failures whose text is kept


class Outcomes:
    """Counts what pytest reports."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[dict[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.when == "call" or (report.when == "setup" and report.skipped):
            self.counts[report.outcome] += 1
        if report.failed:
            self.note(report.nodeid, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self.note(report.nodeid, report.longreprtext)

    def note(self, test: str, text: str) -> None:
        self.failures.append({"test": test, "why": (text.strip().splitlines() or [""])[-1][:300]})


def main(tests: str, out: str) -> int:
    """Run tests and write what came out; the code is 0 also where tests fail: that is a result."""
    outcomes, start = Outcomes(), time.perf_counter()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", tests], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        return int(code)
    result = {
        "passed": outcomes.counts["passed"], "failed": outcomes.counts["failed"],
        "skipped": outcomes.counts["skipped"], "failures": outcomes.failures[:SHOWN],
        "test_seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    Path(out).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
