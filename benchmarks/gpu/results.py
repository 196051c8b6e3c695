"""The folder of results: a JSON file for each stage with a record for each of its parts, and a log.

Few flat files, each written under a temporary name and renamed, so that the folder can be carried away at any moment
and given again: at most eight, one that a killed call left half written among them.
"""

import contextlib
import json
import os
import threading
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from rmfast.errors import UserError

STAGES = ("suite", "kernels", "tiles", "steps", "real")
LOG_BYTES = 4 << 20
MOST_TRIES = 3  # of a part that fails or is cut off
MOST_CUTS = 12  # of a part that goes on where it was cut
_writing = threading.RLock()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file that takes a file's place when the block ends; one at a time in the whole process."""
    with _writing:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        yield partial
        os.replace(partial, path)


class Results:
    """Records of parts: `status` done, failed or cut, `tries`, `cuts`, `seconds`, origin; `result` of done ones, and of
    others what they had reached, where that is of use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def stage(self, stage: str) -> dict[str, dict[str, Any]]:
        """The records of a stage by part.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path(stage)
        if not path.is_file():
            return {}
        try:
            parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
            if all(record["status"] in ("done", "failed", "cut") for record in parts.values()):
                return parts
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{path}: damaged, or no results of this harness; move it away to do its parts again")

    def record(self, stage: str, name: str, *, keeps: bool = False, **record: Any) -> None:
        """Put a part's record in place of what there was. Its tries at this commit are counted, and apart from them its
        cuts where it `keeps` what it has done."""
        with _writing:
            parts = self.stage(stage)
            before = parts.get(name, {})
            if before.get("commit") != record.get("commit"):
                before = {}
            counts = {key: before.get(key, 0) for key in ("tries", "cuts")}
            counts["cuts" if keeps and record["status"] == "cut" else "tries"] += 1
            parts[name] = counts | record
            self._write(stage, parts)

    def forget(self, stage: str, name: str) -> None:
        """As if a part had never run."""
        with _writing:
            parts = self.stage(stage)
            if parts.pop(name, None) is not None:
                self._write(stage, parts)

    def log(self, text: str) -> None:
        """Append to log.txt, which keeps its newest end."""
        path = self.folder / "log.txt"
        with replaced(path) as partial:
            before = path.read_bytes() if path.is_file() else b""
            partial.write_text((before + text.encode())[-LOG_BYTES:].decode(errors="replace"), encoding="utf-8")

    def _write(self, stage: str, parts: dict[str, dict[str, Any]]) -> None:
        with replaced(self.path(stage)) as partial:
            partial.write_text(json.dumps({"stage": stage, "parts": parts}, indent=1) + "\n", encoding="utf-8")


def faulty(result: dict[str, Any]) -> bool:
    """Whether a result says that something is to be mended: tests that fail, an op whose tests do, modes that fail."""
    failed = result.get("failed")
    if isinstance(failed, dict):  # memory that ran out is a result
        failed = [why for why in failed.values() if "does not fit" not in why]
    tests = result.get("tests")
    wrong = any(said.startswith("FAILED") for said in tests.values()) if isinstance(tests, dict) else False
    return bool(result.get("failures") or failed or wrong)


def settled(record: dict[str, Any] | None, commit: str | None = None, lacking: Container[str] = ()) -> bool:
    """Whether a part is not to be run again: it is done, or given up. What failed at another commit than this one is
    run again, as something may have been mended, and what was left out for a need that is not `lacking` any more."""
    if record is None:
        return False
    mended = commit is not None and record.get("commit") != commit
    if record["status"] == "done":
        if any(need not in lacking for need in record["result"].get("absent", {}).values()):
            return False
        return not (mended and faulty(record["result"]))
    return not mended and (record["tries"] >= MOST_TRIES or record.get("cuts", 0) >= MOST_CUTS)
