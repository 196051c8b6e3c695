"""One test file in a process of its own: `python -m benchmarks.gpu.testing FILE OUT.json`.

Kernels' test files that pass are remembered, so that the benchmark of the kernels need not run them again.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.kernels import verify

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


def main(file: str, out: str) -> int:
    """Run the file and write what came out; the code is 0 also where tests fail: that is a result."""
    outcomes, start = Outcomes(), time.perf_counter()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", file], plugins=[outcomes])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        return int(code)
    path = Path(file)
    passed = (
        code == pytest.ExitCode.OK and outcomes.counts["passed"] > 0
    )  # a file that skips all its tests shows nothing
    if passed and path.parent.name == "kernels":
        verify.remember(path.name)
    result = {
        "passed": outcomes.counts["passed"], "failed": outcomes.counts["failed"],
        "skipped": outcomes.counts["skipped"], "failures": outcomes.failures[:SHOWN],
        "test_seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    Path(out).write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
