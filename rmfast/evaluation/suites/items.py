"""A suite's files -> items: what a suite's `read` is made of. No row is lost: what cannot be judged says why."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rmfast.data.columns import AS_NAMED, Columns, uses_line, uses_of
from rmfast.data.example import BadRow, Example
from rmfast.data.row_kinds import JUDGED
from rmfast.data.rows import read_row
from rmfast.data.sources import Row, read_rows, split_note
from rmfast.data.unpack import SUFFIXES
from rmfast.errors import UserError
from rmfast.evaluation.suites.base import Item, Path_, Unscored

Raw = dict[str, Any]
Place = Callable[[Raw], tuple[str, Path_]]
PlaceInFile = Callable[[Raw, str], tuple[str, Path_]]
Convert = Callable[[Raw], Raw]


def data_files(source: str) -> list[Path]:
    """Files of a plain folder that can hold rows, hidden ones apart; none where the source is something else."""
    root = Path(source)
    if not root.is_dir() or (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        return []
    paths = (path for path in root.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES))
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(root).parts))


def surviving_rows(file: Path) -> Iterator[Row]:
    """Rows of one file of several; where it ends early or is damaged, the last one is a bad row that says so."""
    number = 0
    try:
        for row in read_rows(str(file)):
            number = row[1]
            yield row
    except UserError as error:  # a damaged file loses its rows, not the benchmark
        yield str(file), number + 1, BadRow("damaged file", str(error))


def read_items(
    rows: Iterable[Row],
    place: Place,
    convert: Convert = dict,
    *,
    columns: Columns = AS_NAMED,
    judged: Callable[[Example], Example] = lambda example: example,
    uid: Callable[[Raw], Any] = lambda row: row.get("id"),
    writers: Callable[[Raw], Sequence[str]] = lambda row: (),
    extra: Callable[[Raw], Mapping[str, Any]] = lambda row: {},
) -> tuple[list[Item], list[Unscored]]:
    """Items of raw rows, and the rows that cannot be judged; none is left out.

    Args:
        place: part and path of a row, good or bad ({} for one that could not be read).
        convert: a row in one of the formats of `rmfast.data.rows`; raises BadRow, or KeyError, TypeError, IndexError
            for a column that is missing or of another kind.
        columns: what its columns are.
        judged: what of an example is judged; raises BadRow where nothing is.

    Raises:
        UserError: a converted row has a column that looks like a prompt and that `columns` says nothing of.
    """
    items: list[Item] = []
    bad: list[Unscored] = []
    for file, number, row in rows:
        label = f"{file}:{number}"
        try:
            if isinstance(row, BadRow):
                raise row
            try:
                part, path = place(row)
                path = tuple(map(str, path))  # a group may be named by a number
                example = judged(read_row(label, convert(row), columns, JUDGED))
                name = uid(row)
                items.append(
                    Item(
                        uid=label if name is None else str(name),
                        label=label,
                        part=part,
                        path=path,
                        example=example,
                        writers=tuple(writers(row)),
                        extra=extra(row),
                    )
                )
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise BadRow("wrong columns", f"{type(error).__name__}: {error}") from None
        except BadRow as error:
            part, path = _place_of_bad(place, row)
            bad.append(Unscored(label, part, path, error.cause, error.detail))
    return items, bad


def read_files(
    source: str,
    files: Sequence[Path],
    default_split: str,
    place: PlaceInFile,
    convert: Convert,
    **options: Any,
) -> tuple[list[Item], list[Unscored]]:
    """`read_items` of some of a folder's files, or without files of the source as a whole.

    Args:
        place: takes the row and the name, without suffixes, of its file.
    """
    items: list[Item] = []
    bad: list[Unscored] = []
    for path in files or [Path(source)]:
        rows = surviving_rows(path) if files else read_rows(source, default_split)
        good, broken = read_items(rows, partial(_place_in_file, place, path.name.split(".")[0]), convert, **options)
        items += good
        bad += broken
    return items, bad


def _place_in_file(place: PlaceInFile, stem: str, row: Raw) -> tuple[str, Path_]:
    return place(row, stem)


def as_turns(prompt: Any) -> Any:
    """A prompt of plain text as the turn of a user; anything else as it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def source_notes(source: str, items: Sequence[Item]) -> tuple[str, ...]:
    """Lines that say which split was read, where none was named, and what the columns were used as."""
    split = split_note(source, "test")
    columns = uses_line(uses_of(item.example.columns for item in items))
    return (*[split] * bool(split), *[f"columns: {columns}"] * bool(items))


def duplicate_notes(items: Iterable[Item]) -> list[str]:
    """A line for each part in which an id is in several rows of one group."""
    counts = Counter((item.part, "/".join((*item.path, item.uid))) for item in items)
    twice: dict[str, list[str]] = {}
    for (part, name), count in counts.items():
        if count > 1:
            twice.setdefault(part, []).append(name)
    return [
        f"{part}: {len(names)} ids are in several rows ({listed(names)}); all rows count"
        for part, names in twice.items()
    ]


def listed(names: Sequence[str], shown: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _place_of_bad(place: Place, row: Any) -> tuple[str, Path_]:
    try:
        part, path = place(row if isinstance(row, dict) else {})
        return part, tuple(map(str, path))
    except (KeyError, TypeError, IndexError, AttributeError, BadRow):
        return "unknown", ()
