"""Best-of-n lists: a row is right where its best response is above every other one."""

from dataclasses import replace

from rmfast.data.columns import AS_NAMED, Columns
from rmfast.data.example import NO_EDGE, BadRow, Edge, Example
from rmfast.data.sources import read_rows
from rmfast.evaluation.suites.base import Rows, Suite
from rmfast.evaluation.suites.items import read_items, source_notes
from rmfast.evaluation.suites.pairwise import subset


def best_first(example: Example) -> Example:
    """The example with its one best response in front, and edges from it to all others."""
    beaten = {edge.worse for edge in example.edges}
    best = {edge.better for edge in example.edges} - beaten
    below = {edge.worse for edge in example.edges if edge.better in best}
    if len(best) != 1 or len(below) != len(example.responses) - 1:
        raise BadRow(NO_EDGE, f"of {len(example.responses)} responses {len(best)} are above all others; one must be")
    (top,) = best
    others = [response for place, response in enumerate(example.responses) if place != top]
    edges = tuple(Edge(0, place) for place in range(1, len(example.responses)))
    return replace(example, responses=(example.responses[top], *others), edges=edges, per_edge_weight=False)


def read(source: str, columns: Columns = AS_NAMED) -> Rows:
    """All rows of a source, in the formats of `rmfast.data.rows`."""
    rows = read_rows(source, "test")
    items, bad = read_items(rows, lambda row: ("best-of-n", subset(row)), columns=columns, judged=best_first)
    return Rows(tuple(items), tuple(bad), source_notes(source, items))


SUITE = Suite("best-of-n", "lists with one best response, which must be above every other", read, takes_columns=True)
