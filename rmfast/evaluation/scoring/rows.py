"""Rows of a file, scored as they are: none is dropped silently."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rmfast.data.columns import AS_NAMED, Columns, Uses, uses_of
from rmfast.data.example import BadRow, Example
from rmfast.data.notes import Note, Notes, add_notes
from rmfast.data.row_kinds import RESPONSES, RowKind
from rmfast.data.rows import read_row
from rmfast.data.sources import read_rows
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import Reader


@dataclass(frozen=True)
class ReadRow:
    """A row of a file: its place, its columns (None where they could not be read), its example or what is wrong, and
    what people should know of it."""

    label: str
    columns: dict[str, Any] | None
    example: Example | None
    error: str | None
    notes: tuple[Note, ...] = ()


def read_file(
    source: str, columns: Columns = AS_NAMED, kind: RowKind = RESPONSES, default_split: str = "test"
) -> list[ReadRow]:
    """All rows of a source, good and bad.

    Raises:
        UserError: the source cannot be read, no row of it can be used, or a column looks like a prompt and `columns`
            says nothing of it.
    """
    rows = []
    for file, number, row in read_rows(source, default_split):
        label, found = f"{file}:{number}", None if isinstance(row, BadRow) else row
        try:
            example = read_row(label, row, columns, kind)
            rows.append(ReadRow(label, found, example, None))
        except BadRow as error:
            rows.append(ReadRow(label, found, None, f"{error.cause}: {error.detail}"))
    if not any(row.example for row in rows):
        first = f"; the first: {rows[0].label}: {rows[0].error}" if rows else ""
        raise UserError(f"{source}: no row can be used, of {len(rows)}{first}")
    return rows


def readable(rows: Sequence[ReadRow], reader: Reader) -> list[ReadRow]:
    """The rows, those that a model cannot read marked as bad.

    Raises:
        UserError: no row is left.
    """
    encoded = iter(reader.read([row.example for row in rows if row.example]))
    out = []
    for row in rows:
        result = next(encoded) if row.example else None
        if result is not None and not isinstance(result, BadRow):
            row = replace(row, notes=tuple(dict.fromkeys((*row.notes, *result.notes))))
        if isinstance(result, BadRow):
            row = replace(row, example=None, error=f"{result.cause}: {result.detail}")
        out.append(row)
    if not any(row.example for row in out):
        first = next(row for row in out if row.error)
        raise UserError(f"no row can be used, of {len(out)}; the first: {first.label}: {first.error}")
    return out


def noted(rows: Sequence[ReadRow]) -> Notes:
    """The notes of all rows."""
    notes: Notes = {}
    add_notes(notes, ((row.label, note) for row in rows for note in row.notes))
    return notes


def columns_used(rows: Sequence[ReadRow]) -> Uses:
    """What the columns of all rows were used as."""
    return uses_of(row.example.columns for row in rows if row.example)


def bad_line(rows: Sequence[ReadRow], verb: str) -> str | None:
    """How many rows could not be used ("could not be `verb`"), by cause, and the first; None where all could."""
    if not (bad := [row for row in rows if row.error is not None]):
        return None
    counts = Counter(str(row.error).split(":")[0] for row in bad)
    causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.items())
    share = f"{len(bad):,} of {len(rows):,} rows"
    return f"{share} could not be {verb}: {causes}; first: {bad[0].label}: {bad[0].error}"


WRITTEN = ("rewards", "strength_mean", "strength_std", "votes", "members", "fold", "error")
"""Columns that scoring writes. Where a row has rewards, all of them are an earlier scoring's."""


def data_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """A row without what an earlier scoring wrote there: beside new rewards it would be taken for theirs."""
    return {k: v for k, v in columns.items() if k not in WRITTEN} if "rewards" in columns else columns


def scored_row(columns: dict[str, Any], example: Example, rewards: np.ndarray) -> dict[str, Any]:
    """A row's columns and `rewards`: of one member a list; of several a list each, and the strengths of its edges.

    Args:
        rewards: [members, N].
    """
    if len(rewards) == 1:
        return data_columns(columns) | {"rewards": rewards[0].tolist()}
    return strength_row(columns, example, rewards)


def strength_row(columns: dict[str, Any], example: Example, rewards: np.ndarray) -> dict[str, Any]:
    """A row's columns, `rewards` (a list for each member) and, where it has edges, its strengths.

    Args:
        rewards: [members, N].
    """
    made = strengths(example, rewards) if example.edges else {}
    return data_columns(columns) | {"rewards": rewards.tolist()} | made


def unscored_row(columns: dict[str, Any] | None, error: str | None) -> dict[str, Any]:
    """The columns of a row that could not be scored, none of one that could not be read, and why."""
    return data_columns(columns or {}) | {"rewards": None, "error": error}


def written_rows(rows: Sequence[ReadRow], rewards: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    """Every row as scoring writes it.

    Args:
        rewards: [members, N] of each row that has an example.
    """
    each = iter(rewards)
    return [
        unscored_row(row.columns, row.error)
        if row.example is None or row.columns is None
        else scored_row(row.columns, row.example, next(each))
        for row in rows
    ]


def not_kept(columns: dict[str, Any] | None, written: dict[str, Any]) -> list[str]:
    """The columns of a row that scoring replaced or left out."""
    return [k for k in WRITTEN if columns and k in columns and not (k in written and written[k] == columns[k])]


def strengths(example: Example, rewards: np.ndarray) -> dict[str, Any]:
    """Preference strength of each edge over members (Part II, equation 4): mean, population std, votes.

    Args:
        rewards: [members, N].

    Returns:
        strength_mean, strength_std, votes (members that score better above worse): a number, or a list over edges.
    """
    gaps = np.array([rewards[:, e.better] - rewards[:, e.worse] for e in example.edges])  # [E, members]
    columns = {
        "strength_mean": gaps.mean(1).tolist(),
        "strength_std": gaps.std(1).tolist(),
        "votes": (gaps > 0).sum(1).tolist(),
    }
    return {key: values[0] if len(values) == 1 else values for key, values in columns.items()}
