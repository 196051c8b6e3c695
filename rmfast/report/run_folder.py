"""What a run left behind, read back from its folder.

Reading never fails on a part that is missing or broken: the part is left out and a note says so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmfast.errors import UserError, first_line
from rmfast.outputs.arrays import read_arrays
from rmfast.outputs.checksums import unsealed_line

Row = Mapping[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Held-out scores of the final model: R responses, E edges."""

    scores: Floats  # [R]
    better: NDArray[np.intp]  # [E], index of a response
    worse: NDArray[np.intp]  # [E]
    lengths: Floats  # [R], tokens
    labels: NDArray[np.str_]  # [R], "file:row"


@dataclass(frozen=True)
class Run:
    """A run folder in memory. Rows are sorted by step and unique in it."""

    path: Path
    train: tuple[Row, ...]
    evals: Mapping[str, tuple[Row, ...]]  # by name of the held-out set, keys without eval_
    finals: Mapping[str, Scores]  # by name of the held-out set
    config: str | None
    notes: tuple[str, ...]  # what is missing or unreadable

    @property
    def skipped(self) -> tuple[int, ...]:
        """Steps that were left out, in whole or of some members, as loss or gradient was not finite."""
        return tuple(int(row["step"]) for row in self.train if row.get("skipped"))


def read_run(path: Path) -> Run:
    """Read `config.yaml`, `metrics.jsonl`, `eval.jsonl` and `eval/*-final.npz` of a run folder.

    A resumed run repeats steps: the last line of a step holds.

    Raises:
        UserError: the folder does not exist.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give the run.dir of a training run")
    notes: list[str] = []
    train = {row["step"]: row for row in json_rows(path / "metrics.jsonl", notes, has_step)}
    evals: dict[str, dict[float, Row]] = {}
    for row in json_rows(path / "eval.jsonl", notes, has_step):
        plain = {key.removeprefix("eval_"): value for key, value in row.items()}
        evals.setdefault(str(row.get("name", "held-out")), {})[row["step"]] = plain
    finals = {}
    for file in sorted((path / "eval").glob("*-final.npz")):
        scores = _scores(file, notes)
        if scores is not None:
            finals[file.name.removesuffix("-final.npz")] = scores
    config = path / "config.yaml"
    if not config.is_file():
        notes.append("config.yaml is missing.")
    return Run(
        path=path,
        train=_sorted(train),
        evals={name: _sorted(rows) for name, rows in evals.items()},
        finals=finals,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else None,
        notes=tuple(notes),
    )


def last_rows(run: Run) -> dict[str, Row]:
    """The last rows of a run's held-out sets and of its training, by what they are."""
    rows = {f"held out: {name}": rows[-1] for name, rows in run.evals.items()}
    return rows | ({"train, last step": run.train[-1]} if run.train else {})


def number(row: Row, key: str) -> float:
    """A row's value as a finite float, NaN where it is absent, null, not a number or not finite."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, Real):
        return float("nan")
    try:
        found = float(value)
    except OverflowError:  # a whole number that no float can hold
        return float("nan")
    return found if math.isfinite(found) else float("nan")


def column(rows: Sequence[Row], key: str) -> Floats:
    """One value a row [N], as `number` reads it."""
    return np.array([number(row, key) for row in rows], dtype=np.float64)


def json_rows(path: Path, notes: list[str], usable: Callable[[Row], bool]) -> list[dict[str, Any]]:
    """The usable JSON objects of a file, a line each; other lines (a crash cuts the last one) are counted in a note."""
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    rows, unreadable = [], 0
    for line in path.read_bytes().split(b"\n"):
        try:
            row = unsealed_line(line) if line.strip() else None
        except (ValueError, RecursionError):
            row = {}
        if row and usable(row):
            rows.append(row)
        elif row is not None:
            unreadable += 1
    if unreadable:
        notes.append(f"{path.name}: {unreadable} unreadable {'line' if unreadable == 1 else 'lines'} left out.")
    return rows


def has_step(row: Row) -> bool:
    return math.isfinite(number(row, "step"))


def _sorted(rows: Mapping[float, Row]) -> tuple[Row, ...]:
    return tuple(rows[step] for step in sorted(rows))


def _scores(path: Path, notes: list[str]) -> Scores | None:
    try:
        arrays = read_arrays(path)
        found = Scores(
            scores=arrays["scores"].astype(np.float64),
            better=arrays["better"].astype(np.intp),
            worse=arrays["worse"].astype(np.intp),
            lengths=arrays["lengths"].astype(np.float64),
            labels=arrays["labels"].astype(np.str_),
        )
    except (OSError, KeyError, ValueError) as error:
        notes.append(f"eval/{path.name} is unreadable ({first_line(error)}).")
        return None
    ends = np.concatenate([found.better, found.worse])
    alike = found.scores.shape == found.lengths.shape == found.labels.shape and found.better.shape == found.worse.shape
    if found.scores.ndim != 1 or not alike or (ends.size and not 0 <= ends.min() <= ends.max() < found.scores.size):
        notes.append(f"eval/{path.name} is inconsistent: its edges and responses do not fit together.")
        return None
    return found
