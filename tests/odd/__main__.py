"""All odd input: python -m tests.odd [SEED] prints how many cases of each kind ended how, and what is wrong."""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers reads it

from tests.odd import cases  # noqa: E402
from tests.odd.commands import write_inputs  # noqa: E402

COUNTS = {"rows": 3000, "configs": 1500, "commands": 250, "models": 600, "results": 300, "runs": 300}


def everything(seed: int) -> int:
    """Run all cases; how many ended wrongly."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = write_inputs(Path(name))
        (folder / "here").mkdir()
        os.chdir(folder / "here")  # some names are relative
        for kind, count in COUNTS.items():
            seen = getattr(cases, kind)(seed, count, *([folder] if kind != "rows" else []))
            print(
                f"{kind}: {', '.join(f'{n:,} {how}' for how, n in sorted(seen.ended.items()))}", *seen.flaws, sep="\n  "
            )
            wrong += len(seen.flaws)
        os.chdir("/")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(everything(int(sys.argv[1]) if sys.argv[1:] else 0)))
