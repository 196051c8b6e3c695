"""The folder of results: a JSON file for each stage with a record for each of its parts, and a log.

Few flat files, each written under a temporary name and renamed, so that the folder can be carried away at any moment
and given again.
"""

import json
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rmfast.errors import UserError

STAGES = ("suite", "kernels", "tiles", "steps", "real")
LOG_BYTES = 4 << 20
MOST_TRIES = 3  # of a part that fails or is cut off
MOST_CUTS = 12  # of a part that goes on where it was cut


class Results:
    """Records of parts: `status` done, failed or cut, `tries`, `cuts`, `seconds`, origin; of done ones `result`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

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
        with self._lock:
            parts = self.stage(stage)
            before = parts.get(name, {})
            if before.get("commit") != record.get("commit"):
                before = {}
            counts = {key: before.get(key, 0) for key in ("tries", "cuts")}
            counts["cuts" if keeps and record["status"] == "cut" else "tries"] += 1
            parts[name] = counts | record
            self._write(self.path(stage), json.dumps({"stage": stage, "parts": parts}, indent=1) + "\n")

    def forget(self, stage: str, name: str) -> None:
        """As if a part had never run."""
        with self._lock:
            parts = self.stage(stage)
            if parts.pop(name, None) is not None:
                self._write(self.path(stage), json.dumps({"stage": stage, "parts": parts}, indent=1) + "\n")

    def log(self, text: str) -> None:
        """Append to log.txt, which keeps its newest end."""
        with self._lock:
            path = self.folder / "log.txt"
            before = path.read_bytes() if path.is_file() else b""
            self._write(path, (before + text.encode())[-LOG_BYTES:].decode(errors="replace"))

    def _write(self, path: Path, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)


def faulty(result: dict[str, Any]) -> bool:
    """Whether a result says that something is to be mended: tests that fail, ops refused for them, modes that fail."""
    failed = result.get("failed")
    if isinstance(failed, dict):  # memory that ran out is a result
        failed = [why for why in failed.values() if "does not fit" not in why]
    refused = any("tests fail" in line["why"] for line in result.get("skipped") or () if isinstance(line, dict))
    return bool(result.get("failures") or failed or refused)


def settled(record: dict[str, Any] | None, commit: str | None = None) -> bool:
    """Whether a part is not to be run again: it is done, or given up. What failed at another commit than this one is
    run again, as something may have been mended."""
    if record is None:
        return False
    mended = commit is not None and record.get("commit") != commit
    if record["status"] == "done":
        absent = record["result"].get("absent", {}).values()
        if any(all(map(find_spec, names.split(", "))) for names in absent):
            return False  # what was not installed is there now
        return not (mended and faulty(record["result"]))
    return not mended and (record["tries"] >= MOST_TRIES or record.get("cuts", 0) >= MOST_CUTS)
