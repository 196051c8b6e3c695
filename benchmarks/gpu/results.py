"""The folder of results: a JSON file for each stage with a record for each of its parts, and a log.

Few flat files, each replaced as a whole, so that the folder can be carried away at any moment and given again.
"""

import json
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any

from benchmarks.origin import write_json
from rmfast.data.files import write_text
from rmfast.errors import UserError

STAGES = ("suite", "kernels", "tiles", "steps")
LOG_BYTES = 4 << 20

Records = dict[str, dict[str, Any]]
"""Of each part its `status` (done, failed or cut), seconds and origin; `result` where it has one."""


class Results:
    """Records of parts, one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()

    def stage(self, stage: str) -> Records:
        """The records of a stage by part.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / f"{stage}.json"
        if not path.is_file():
            return {}
        try:
            parts: Records = json.loads(path.read_text(encoding="utf-8"))["parts"]
            if all(record["status"] in ("done", "failed", "cut") for record in parts.values()):
                return parts
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise UserError(f"{path}: damaged, or no results of this harness; move it away to do its parts again")

    def put(self, stage: str, name: str, record: dict[str, Any] | None) -> None:
        """Put a part's record in place of what there was; None: as if it had never run."""
        with self.lock:
            parts = {key: value for key, value in self.stage(stage).items() if key != name or record is not None}
            parts |= {} if record is None else {name: record}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / f"{stage}.json", {"stage": stage, "parts": parts})

    def log(self, text: str) -> None:
        """Append to log.txt, which keeps its newest end."""
        path = self.folder / "log.txt"
        with self.lock:
            before = path.read_bytes() if path.is_file() else b""
            write_text(path, (before + text.encode())[-LOG_BYTES:].decode(errors="replace"))


def faulty(result: dict[str, Any]) -> bool:
    """Whether a result says that something is to be mended: tests that fail, an op whose tests do, modes that fail."""
    failed = result.get("failed")
    if isinstance(failed, dict):  # memory that ran out is a result
        failed = [why for why in failed.values() if "does not fit" not in why]
    tests = result.get("tests")
    wrong = any(said.startswith("FAILED") for said in tests.values()) if isinstance(tests, dict) else False
    return bool(result.get("failures") or failed or wrong)


def settled(record: dict[str, Any] | None, commit: str | None = None, lacking: Container[str] = ()) -> bool:
    """Whether a part is not to be run again. What failed at another commit than this one is run again, as something may
    have been mended, and what was left out for a need that is not `lacking` any more; what was cut, always."""
    if record is None or record["status"] == "cut":
        return False
    mended = commit is not None and record.get("commit") != commit
    if record["status"] == "failed":
        return not mended
    if any(need not in lacking for need in record["result"].get("absent", {}).values()):
        return False
    return not (mended and faulty(record["result"]))
