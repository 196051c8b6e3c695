"""Best-of-n lists: a row is right where its best response is above every other one."""

from typing import Any

from rmfast.data.example import NO_EDGE, BadRow
from rmfast.data.rows import parse_row
from rmfast.data.sources import read_rows
from rmfast.evaluation.items import read_items
from rmfast.evaluation.suite import Rows, Suite
from rmfast.evaluation.suites.pairwise import subset


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """The row with edges from its one best response to all others."""
    example = parse_row(row, allow_empty=True)
    beaten = {edge.worse for edge in example.edges}
    best = {edge.better for edge in example.edges} - beaten
    below = {edge.worse for edge in example.edges if edge.better in best}
    if len(best) != 1 or len(below) != len(example.responses) - 1:
        raise BadRow(NO_EDGE, f"of {len(example.responses)} responses {len(best)} are above all others; one must be")
    (top,) = best
    others = [response for place, response in enumerate(example.responses) if place != top]
    is_ids = example.prompt is None and not example.is_messages and not isinstance(others[0], str)
    suffix = "_ids" if is_ids else ""
    kept = {key: row[key] for key in ("tools", "chat_template_kwargs") if key in row}
    return kept | {"prompt": example.prompt, f"chosen{suffix}": example.responses[top], f"rejected{suffix}": others}


def read(source: str) -> Rows:
    """All rows of a source, in the formats of `rmfast.data.rows`."""
    items, bad = read_items(read_rows(source, "test"), lambda row: ("best-of-n", subset(row)), convert)
    return Rows(tuple(items), tuple(bad))


SUITE = Suite("best-of-n", "lists with one best response, which must be above every other", read)
