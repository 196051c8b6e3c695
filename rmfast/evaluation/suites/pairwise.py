"""Preference data of any format that rmfast trains on, an edge a verdict; `subset` (or `category`) names its groups."""

from collections.abc import Iterator
from typing import Any

from rmfast.data.columns import AS_NAMED, Columns
from rmfast.data.sources import read_rows
from rmfast.evaluation.suites.base import Path_, Result, Rows, Suite, Verdict
from rmfast.evaluation.suites.items import read_items, source_notes


def subset(row: dict[str, Any]) -> Path_:
    """The group that a row names for itself, if it does."""
    names = [row[key] for key in ("category", "subset") if isinstance(row.get(key), str) and row[key]]
    return tuple(names)


def read(source: str, columns: Columns = AS_NAMED) -> Rows:
    """All rows of a source, in the formats of `rmfast.data.rows`."""
    items, bad = read_items(read_rows(source, "test"), lambda row: ("pairwise", subset(row)), columns=columns)
    return Rows(tuple(items), tuple(bad), source_notes(source, items))


def verdicts(result: Result) -> Iterator[Verdict]:
    """Each edge counts for itself."""
    for gap in result.gaps:
        yield Verdict("pairwise", result.item.path, bool(gap > 0))


SUITE = Suite("pairwise", "preference pairs and ranked lists, each edge for itself", read, verdicts, takes_columns=True)
