"""RM-Bench (Liu et al., 2024): three right and three wrong answers a prompt, in three styles: concise, detailed, and
detailed in markdown; every right one is compared with every wrong one.

Easy: the right answer has the richer style (below the matrix's diagonal); normal: the same style; hard: the wrong one
has it. As in the authors' code: a domain's score is the mean of its three accuracies, safety holds the rows of both its
halves, and the overall score, like easy, normal and hard as a whole, is the plain mean over the four domains.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from rmfast.data.example import WRONG_TYPE, BadRow
from rmfast.evaluation.suites.base import Cell, Path_, Result, Rows, Suite, Verdict
from rmfast.evaluation.suites.items import as_turns, data_files, duplicate_notes, listed, read_files

DOMAINS = {"chat": ("chat",), "code": ("code",), "math": ("math",), "safety": ("safety-refuse", "safety-response")}
LEVELS = ("easy", "normal", "hard")
STYLES = 3
TOTAL = "total_dataset"  # the file that holds all domains


def place(row: dict[str, Any], stem: str = "") -> tuple[str, Path_]:
    """Domain, and half of safety, from the row or from the file's name."""
    name = str(row.get("domain") or stem.removesuffix("_filtered"))
    domain = name.split("-")[0]
    return "matrix", (domain, name) if name != domain else (domain,)


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """Nine edges, a row of the matrix after the other."""
    for key in ("chosen", "rejected"):
        if not isinstance(row[key], list) or len(row[key]) != STYLES:
            raise BadRow(WRONG_TYPE, f"`{key}` is not a list of {STYLES} answers")
    edges = [[right, STYLES + wrong] for right, wrong in product(range(STYLES), repeat=2)]
    return {"prompt": as_turns(row["prompt"]), "responses": [*row["chosen"], *row["rejected"]], "edges": edges}


def read(source: str) -> Rows:
    """A file, or a folder: its total_dataset, or else the files of the domains."""
    files, notes = data_files(source), []
    names = (TOTAL, *(f"{name}_filtered" for halves in DOMAINS.values() for name in halves))
    known = [file for file in files if file.name.split(".")[0] in names]
    if total := [file for file in known if file.name.startswith(TOTAL)]:
        if len(known) > 1:
            notes.append(f"{total[0].name} is read; the {len(known) - 1} files of single domains are left out")
        known = total[:1]
    items, bad = read_files(source, known, "train", place, convert)
    present = {item.path[-1] for item in items}
    if missing := [name for halves in DOMAINS.values() for name in halves if name not in present]:
        notes.append(f"no rows of {', '.join(missing)}")
    if other := sorted({item.path[0] for item in items} - DOMAINS.keys()):
        notes.append(f"{len(other)} domains are not of the benchmark: {listed(other)}")
    return Rows(tuple(items), tuple(bad), (*notes, *duplicate_notes(items)))


def verdicts(result: Result) -> Iterator[Verdict]:
    """Each of the nine comparisons, in the part of its difficulty."""
    for (right, wrong), gap in zip(product(range(STYLES), repeat=2), result.gaps, strict=True):
        yield Verdict(LEVELS[1 + np.sign(wrong - right)], result.item.path, bool(gap > 0))


def headline(cells: Sequence[Cell], results: Sequence[Result]) -> dict[str, float]:
    """Overall score, domains and difficulties; nan for what has no rows."""
    found = {(cell.path[0], cell.part): cell.accuracy for cell in cells if len(cell.path) == 1}
    matrix = np.array([[found.get((domain, level), np.nan) for level in LEVELS] for domain in DOMAINS])
    names = ("overall", *DOMAINS, *LEVELS)
    return dict(zip(names, map(float, (matrix.mean(), *matrix.mean(1), *matrix.mean(0))), strict=True))


SUITE = Suite("rm-bench", "RM-Bench: easy, normal and hard comparisons in four domains", read, verdicts, headline)
