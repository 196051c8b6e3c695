"""What a run left behind, read back from its folder, and the verdict on it in words.

Reading never fails on a part that is missing or broken: the part is left out and a note says so.
"""

import json
import math
import os
import shlex
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmfast.errors import UserError

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


def read_run(path: Path) -> Run:
    """Read `config.yaml`, `metrics.jsonl`, `eval.jsonl` and `eval/*-final.npz` of a run folder.

    A resumed run repeats steps: the last line of a step holds.

    Raises:
        UserError: the folder does not exist.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give the run.dir of a training run")
    notes: list[str] = []
    train = {row["step"]: row for row in _rows(path / "metrics.jsonl", notes)}
    evals: dict[str, dict[float, Row]] = {}
    for row in _rows(path / "eval.jsonl", notes):
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


def number(row: Row, key: str) -> float:
    """A row's value as a finite float, NaN where it is absent, null, not a number or not finite."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, Real):
        return float("nan")
    return float(value) if math.isfinite(float(value)) else float("nan")


def column(rows: Sequence[Row], key: str) -> Floats:
    """One value a row [N], as `number` reads it."""
    return np.array([number(row, key) for row in rows], dtype=np.float64)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if np.isfinite(share) else "unknown"


def accuracy_line(metrics: Row) -> str:
    """Accuracy and its interval, as in "61.2 % (95 % interval 57.9 to 64.4 %)"."""
    low, high = number(metrics, "accuracy_low"), number(metrics, "accuracy_high")
    interval = f" (95 % interval {100 * low:.1f} to {percent(high)})" if np.isfinite(low + high) else ""
    return percent(number(metrics, "accuracy")) + interval


def baseline(metrics: Row) -> tuple[str, float]:
    """The rule to beat and its accuracy: the better rule of length or, where lengths are unknown, a coin."""
    share = number(metrics, "baseline_accuracy")
    return (f'"{metrics.get("baseline", "length")}"', share) if np.isfinite(share) else ("a fair coin", 0.5)


def verdict(metrics: Row) -> str:
    """In plain words, whether the interval of the accuracy clears the baseline; broken scores come first."""
    broken = number(metrics, "nonfinite")
    if broken > 0:
        return f"{broken:,.0f} scores are not finite: the model is broken, its pairs count as lost."
    rule, share = baseline(metrics)
    low, high = number(metrics, "accuracy_low"), number(metrics, "accuracy_high")
    if not np.isfinite(low + high):
        return "The accuracy is unknown: no held-out pair was scored."
    beat = f"{rule} ({percent(share)})"
    if low > share:
        return f"The whole interval lies above {beat}: the model ranks better than that rule."
    if high < share:
        return f"The whole interval lies below {beat}: that rule ranks better than the model."
    return f"The interval does not clear {beat}: the model may be no better than that rule. More pairs would tell."


def final_summary(
    metrics: Row | None,
    *,
    model: Path,
    report: Path | None,
    checkpoints: Path | None = None,
    data: str | None = None,
    name: str = "held-out",
) -> str:
    """The console's last words on a run.

    Args:
        metrics: `pairwise_metrics` of the final model on the held-out set called `name`; None without such a set.
        model: the exported model's folder.
        report: folder of the plots and report.html; None where none was written.
        checkpoints: folder of the checkpoints.
        data: source of held-out pairs, for the line to type next.
    """
    if metrics is None:
        lines = ["No held-out pairs were given (data.eval): nothing tells how well this model ranks."]
    else:
        pairs = number(metrics, "edges")
        scope = f" on {pairs:,.0f} {'pair' if pairs == 1 else 'pairs'}" if np.isfinite(pairs) else ""
        lines = [f"Accuracy on {name}: {accuracy_line(metrics)}{scope}", verdict(metrics)]
    lines += ["", f"Model    {model}"]
    if checkpoints is not None:
        lines.append(f"States   {checkpoints} (the same command goes on from the newest)")
    if report is not None:
        lines.append(f"Report   {report / 'report.html'} (plots beside it)")
    source = shlex.quote(data) if data else "PAIRS.jsonl"
    out = shlex.quote(str(model.parent / "pairwise.json"))
    lines.append(f"Next     {_command()} eval {shlex.quote(str(model))} --suite pairwise --data {source} --out {out}")
    return "\n".join(lines)


def _command() -> str:
    """How to type `rmfast` here: beside this Python where it is not on the path."""
    if shutil.which("rmfast"):
        return "rmfast"
    beside = Path(sys.executable).with_name("rmfast")
    return shlex.quote(os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside))


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """JSON objects with a finite step, a line each; other lines (a crash cuts the last one) are counted in a note."""
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return []
    rows, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = line
        if isinstance(row, dict) and np.isfinite(number(row, "step")):
            rows.append(row)
        elif row is not None:
            unreadable += 1
    if unreadable:
        notes.append(f"{path.name}: {unreadable} unreadable {'line' if unreadable == 1 else 'lines'} left out.")
    return rows


def _sorted(rows: Mapping[float, Row]) -> tuple[Row, ...]:
    return tuple(rows[step] for step in sorted(rows))


def _scores(path: Path, notes: list[str]) -> Scores | None:
    try:
        # numpy leaves a file open that it cannot read: so the file is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = Scores(
                scores=arrays["scores"].astype(np.float64),
                better=arrays["better"].astype(np.intp),
                worse=arrays["worse"].astype(np.intp),
                lengths=arrays["lengths"].astype(np.float64),
                labels=arrays["labels"].astype(np.str_),
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        notes.append(f"eval/{path.name} is unreadable ({str(error).splitlines()[0] if str(error) else 'cut off'}).")
        return None
    ends = np.concatenate([found.better, found.worse])
    alike = found.scores.shape == found.lengths.shape == found.labels.shape and found.better.shape == found.worse.shape
    if found.scores.ndim != 1 or not alike or (ends.size and not 0 <= ends.min() <= ends.max() < found.scores.size):
        notes.append(f"eval/{path.name} is inconsistent: its edges and responses do not fit together.")
        return None
    return found
