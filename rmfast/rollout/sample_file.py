"""Samples on disk: a line for each finished prompt, written at once, so that nothing is drawn twice."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rmfast.errors import UserError
from rmfast.jsonio import json_line

SETTINGS = "sample_settings"
"""Key of the first line, whose value says what the samples depend on."""
START = f'{{"{SETTINGS}": '.encode()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Within it, no other command claims a file of samples.

    Raises:
        UserError: another one has.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise UserError(f"{path}: cannot be read and written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = "another process is writing it; wait until it ends, or give another --out"
            raise UserError(f"{path}: {message}") from None
        except OSError:  # a file system without locks
            pass
        yield


class SampleFile:
    """Records of prompts by number, in the order in which they were added, behind a line of settings.

    A last line that a crash cut off is removed. With the same settings the file is gone on with; without a record it is
    begun again.

    Args:
        settings: what the samples depend on, by name.
        mend: what to do where the file has others.

    Attributes:
        found: prompts of which there is a record.

    Raises:
        UserError: the file cannot be written, is something else, or has records of other settings, the first of which
            is named.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], mend: str) -> None:
        self.path = path
        self.found: dict[int, tuple[int, int]] = {}  # where a record is in the file, and its length
        try:
            self._file = path.open("a+b")
            self._read(dict(settings), mend)
        except OSError as error:
            raise UserError(f"{path}: cannot be read and written: {error.strerror}") from None

    def _read(self, settings: dict[str, Any], mend: str) -> None:
        self._file.seek(0)
        whole, before = 0, dict[str, Any]()
        try:
            for line in self._file:
                if not line.endswith(b"\n") and (whole or START.startswith(line[: len(START)])):
                    break  # a crash cut it off
                values = json.loads(line)
                if whole:
                    self.found[int(values["number"])] = (whole, len(line))
                else:
                    before = {**values[SETTINGS]}
                whole += len(line)
        except (ValueError, KeyError, TypeError):
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
        line = f"{json_line(values)}\n".encode()
        begin = self._file.seek(0, 2)
        self._file.write(line)
        self._file.flush()
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
        path.unlink()

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, by the prompts' numbers."""
        return map(self.record, sorted(self.found))

    def record(self, number: int) -> dict[str, Any]:
        """A prompt's record."""
        begin, length = self.found[number]
        self._file.seek(begin)
        record: dict[str, Any] = json.loads(self._file.read(length))
        del record["number"]
        return record

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
