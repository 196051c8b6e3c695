"""The tests that a GPU runs without Triton's interpreter, a file a part."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ROOT, Call, Part, Settings

LEFT_OUT = ("tests/kernels/test_aot.py",)  # compiles without a GPU, in CI
MORE = ("tests/parallel/test_graphs.py", "tests/test_csrc.py")
LONG = {"test_prefix_attention.py": 120.0, "test_flash_attention.py": 80.0}


def files() -> list[str]:
    """Test files, the longest first."""
    found = [p for folder in ("kernels", "models") for p in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    names = [str(p.relative_to(ROOT)) for p in found] + list(MORE)
    return sorted((name for name in names if name not in LEFT_OUT), key=lambda name: -LONG.get(Path(name).name, 0.0))


def run(file: str, call: Call) -> dict[str, Any]:
    out = call.folder("suite") / f"{Path(file).stem}.json"
    out.unlink(missing_ok=True)
    call.python("benchmarks.gpu.testing", file, out)
    return json.loads(out.read_text(encoding="utf-8"))


def parts(settings: Settings) -> list[Part]:
    """A part for each file; two small ones at the tiny size."""
    chosen = ["tests/kernels/test_tables.py", "tests/kernels/test_common.py"] if settings.tiny else files()
    seconds = (lambda name: 5.0) if settings.tiny else (lambda name: LONG.get(Path(name).name, 40.0))
    return [
        Part("suite", Path(f).stem, seconds(f), partial(run, f), shared=not settings.tiny, needs=("tests",))
        for f in chosen
    ]


def lines(records: dict[str, dict[str, Any]]) -> list[str]:
    """Totals, and what failed."""
    done = [record["result"] for record in records.values() if record["status"] == "done"]
    total = {key: sum(result[key] for result in done) for key in ("passed", "failed", "skipped")}
    out = [f"{len(done)} files: {total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped"]
    return out + [f"  FAILED {f['test']}: {f['why'][:120]}" for result in done for f in result["failures"]]
