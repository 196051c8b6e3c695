"""Samples on disk: a line for each finished prompt, written at once, so that nothing is drawn twice."""

import json
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rmfast.data.files import FlushedLines
from rmfast.errors import UserError, first_line
from rmfast.jsonio import json_line
from rmfast.outputs.checksums import sealed_line, unsealed_line
from rmfast.outputs.failure import naming

SETTINGS = "sample_settings"
"""Key of the first line, whose value says what the samples depend on."""
START = f'{{"{SETTINGS}": '.encode()


class SampleFile:
    """Records of prompts by number, in the order in which they were added, behind a line of settings.

    A last line that a crash cut off is removed. With the same settings the file is gone on with; without a record it is
    begun again. Each line has a checksum: a record that was damaged is none.

    Args:
        settings: what the samples depend on, by name.
        mend: what to do where the file has others.

    Attributes:
        found: prompts of which there is a record.
        notes: lines that say which records were damaged.

    Raises:
        UserError: the file cannot be written, is something else, or has records of other settings, the first of which
            is named.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], mend: str) -> None:
        self.path = path
        self.found: dict[int, tuple[int, int]] = {}  # where a record is in the file, and its length
        self.notes: list[str] = []
        try:
            self._file = path.open("a+b")
            self._lines = FlushedLines(self._file)
            self._read(dict(settings), mend)
        except OSError as error:
            raise UserError(f"{path}: cannot be read and written: {error.strerror}") from None

    def _read(self, settings: dict[str, Any], mend: str) -> None:
        self._file.seek(0)
        whole, before = 0, dict[str, Any]()
        try:
            for place, line in enumerate(self._file, 1):
                if not line.endswith(b"\n") and (whole or START.startswith(line[: len(START)])):
                    break  # a crash cut it off
                try:
                    values = unsealed_line(line)
                    if whole:
                        self.found[operator.index(values["number"])] = (whole, len(line))
                    else:
                        before = {**values[SETTINGS]}
                except ValueError as error:
                    if not whole:
                        raise
                    self.notes.append(f"{self.path}: line {place}: {first_line(error)}; its prompt is drawn again")
                whole += len(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            self._file.close()
            raise UserError(f"{self.path}: is no file of samples; {mend}") from None
        written = json.loads(json.dumps(settings))
        if self.found:
            self._compare(before, written, mend)
        elif before != written:
            whole = 0
        self._file.truncate(whole)
        if not whole:
            self._write({SETTINGS: settings})

    def _compare(self, before: dict[str, Any], now: dict[str, Any], mend: str) -> None:
        for name in {**before, **now}:
            was, is_now = before.get(name), now.get(name)
            if was != is_now:
                self._file.close()
                raise UserError(f"{self.path}: was begun with {name} {was!r}, and this is {is_now!r}; {mend}")

    def _write(self, values: dict[str, Any]) -> tuple[int, int]:
        line = sealed_line(json_line(values))
        with naming(self.path):
            begin = self._file.seek(0, 2)
            self._lines.write(line)
        return begin, len(line)

    def add(self, number: int, record: dict[str, Any]) -> None:
        """Keep a prompt's record."""
        self.found[number] = self._write({"number": number, **record})

    def absorb(self, path: Path, settings: Mapping[str, Any], mend: str) -> None:
        """Take over the records of another file, with the same settings, and remove it."""
        with SampleFile(path, settings, mend) as other:
            numbers = [number for number in sorted(other.found) if number not in self.found]
            for number in numbers:
                self.add(number, other.record(number))
            self.notes += other.notes
        self._lines.force()
        path.unlink()

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, by the prompts' numbers."""
        return map(self.record, sorted(self.found))

    def record(self, number: int) -> dict[str, Any]:
        """A prompt's record."""
        begin, length = self.found[number]
        self._file.seek(begin)
        record = unsealed_line(self._file.read(length))
        del record["number"]
        return record

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self.path):
            if error is None:
                self._lines.force()
            self._file.close()
