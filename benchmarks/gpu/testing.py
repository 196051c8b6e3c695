"""A test file, or one test of it, in its own process: `python -m benchmarks.gpu.testing FILE[::TEST] --json OUT`."""

import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.origin import write_json

SHOWN = 20  # failures whose text is kept


def outcome(report: Path) -> dict[str, Any]:
    """What pytest's report in XML says: numbers of tests, and of those that failed the names and last words."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures, skipped = {}, 0
    for case in cases:
        skipped += case.find("skipped") is not None
        for fault in (*case.iter("failure"), *case.iter("error")):
            last = (fault.text or fault.get("message") or "").strip().splitlines()[-1:]
            failures[f"{case.get('classname')}::{case.get('name')}"] = "".join(last)[:300]
    counts = {"passed": len(cases) - len(failures) - skipped, "failed": len(failures), "skipped": skipped}
    return counts | {"failures": [{"test": test, "why": failures[test]} for test in sorted(failures)]}


def main(tests: str, _: str, out: str) -> int:
    """Run tests and write what came out; the code is 0 also where tests fail: that is a result."""
    import pytest

    start, report = time.perf_counter(), Path(out).with_suffix(".xml")
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}", tests])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        return int(code)
    found = outcome(report)
    found["failures"] = found["failures"][:SHOWN]
    write_json(Path(out), found | {"test_seconds": round(time.perf_counter() - start, 2)})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
