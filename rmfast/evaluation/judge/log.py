"""The log of a judge's answers: a line of JSON each, written at once, so that no answer is paid for twice."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rmfast.errors import UserError
from rmfast.evaluation.judge.backend import Answer
from rmfast.outputs.failure import naming

START = b'{"key": "'  # of every line
FIELDS = ("text", "finish", "prompt_tokens", "completion_tokens")


class AnswerLog:
    """Known answers by key, and a file that grows with every new one; without a path, nothing is kept.

    A last line that a crash cut off is removed. Answers to other questions, of other models or settings, have other
    keys: they stay and are not used.

    Raises:
        UserError: the file cannot be written, or is something else than a log.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        self._file = None
        if path is None:
            return
        try:
            self._file = path.open("a+b")
            self._read(path)
        except OSError as error:
            raise UserError(f"--judge-log {path}: cannot be read and written: {error.strerror}") from None

    def _read(self, path: Path) -> None:
        assert self._file is not None
        self._file.seek(0)
        whole = 0  # bytes of complete lines
        for number, line in enumerate(self._file, 1):
            try:
                cut = not line.endswith(b"\n") and START.startswith(line[: len(START)])
                if cut and (whole or (line.startswith(START) and _is_cut(line))):
                    break  # the last one of a log, whose writer was stopped
                values = json.loads(line)
                self.known[values["key"]] = Answer(*(values[field] for field in FIELDS))
            except (ValueError, KeyError, TypeError, RecursionError):
                self._file.close()
                raise UserError(
                    f"--judge-log {path}:{number}: not a line of a judge's log; name another file, or remove the line"
                ) from None
            whole += len(line)
        self._file.truncate(whole)

    def add(self, key: str, answer: Answer, about: Mapping[str, Any]) -> None:
        """Keep an answer; `about` is for people who read the file."""
        self.known[key] = answer
        if self._file is not None:
            values = {"key": key, **about, **{field: getattr(answer, field) for field in FIELDS}}
            with naming(Path(self._file.name)):
                self._file.write(json.dumps(values).encode() + b"\n")
                self._file.flush()

    def __enter__(self) -> "AnswerLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with naming(Path(self._file.name)):
                self._file.close()


def _is_cut(line: bytes) -> bool:
    """Whether a line is not all of a JSON value."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
