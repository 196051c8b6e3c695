"""What people should know about rows that are used: counted by kind, with the first row of each kind as an example."""

from collections.abc import Iterable
from typing import NamedTuple


class Note(NamedTuple):
    """Something about one row: a `kind` (for counts) and a `detail` (for people)."""

    kind: str
    detail: str


Notes = dict[str, tuple[int, str, str]]
"""By kind: rows, the label ("file:row") of the first, and its detail."""


def add_notes(notes: Notes, rows: Iterable[tuple[str, Note]]) -> None:
    """Count the notes of labelled rows."""
    for where, note in rows:
        count, first, detail = notes.get(note.kind, (0, where, note.detail))
        notes[note.kind] = (count + 1, first, detail)


def note_lines(notes: Notes) -> list[str]:
    """A line for each kind."""
    return [
        f"{count:,} row{'' if count == 1 else 's'}: {kind}, such as {where}: {detail}"
        for kind, (count, where, detail) in notes.items()
    ]
