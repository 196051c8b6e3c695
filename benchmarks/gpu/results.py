"""The folder of results: a JSON file for each stage with a record for each of its parts, and a log.

Few flat files, each written aside and renamed, so that the folder can be carried away at any moment and given again.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

LOG_BYTES = 4 << 20
MOST_TRIES = 3  # of a part that fails or is cut off
MOST_CUTS = 12  # of a part that goes on where it was cut


class Results:
    """Records of parts: `status` done, failed or cut, `tries`, `cuts`, `seconds`, and of done ones `result` and its origin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def path(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def stage(self, stage: str) -> dict[str, dict[str, Any]]:
        """The records of a stage by part."""
        path = self.path(stage)
        return json.loads(path.read_text(encoding="utf-8"))["parts"] if path.is_file() else {}

    def record(self, stage: str, name: str, *, keeps: bool = False, **record: Any) -> None:
        """Put a part's record in place of what there was; tries are counted, and apart from them the cuts of a part that
        `keeps` what it has done."""
        with self._lock:
            parts = self.stage(stage)
            counts = {key: parts.get(name, {}).get(key, 0) for key in ("tries", "cuts")}
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
        aside = path.with_suffix(".partial")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)


def settled(record: dict[str, Any] | None) -> bool:
    """Whether a part is not to be run again."""
    if record is None or record["status"] == "done":
        return record is not None
    return record["tries"] >= MOST_TRIES or record.get("cuts", 0) >= MOST_CUTS
