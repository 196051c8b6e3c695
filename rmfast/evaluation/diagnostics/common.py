"""Results of models that could not score the same rows, brought to the rows that all of them scored."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.headline import cells_of, same_figures, verdicts_of
from rmfast.evaluation.diagnostics.table import check_items, check_same
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.judge.votes import vote_curves
from rmfast.evaluation.suites.base import Suite, Unscored, cells
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import ItemResult, SuiteResult, edge_metrics

RowKey = tuple[str, tuple[str, ...], tuple[str, ...], str]


def on_common_rows(
    results: Sequence[SuiteResult], files: Sequence[str], suite: Suite | None = None
) -> tuple[list[SuiteResult], list[str]]:
    """Results on the rows that every model has scored, and for each model that left some out a line that says so.

    Rows are told apart by part, group and place (file and number; a folder that holds all files does not count). Only
    a row that some result lists as not scored is left out; where all hold the same rows, results are returned as they
    are. Of the others every figure is computed again on the rows that are left: headline, cells, metrics of all edges,
    an ensemble's members and the curves of votes. `worst` is cut to those rows. `left_out` names the rows that a model
    has scored and that are left out for another's sake; it, `rows` and what a judge says of its answers stay those of
    the whole file. The loss is nan: it needs margins, which are not in the file.

    Args:
        files: names of the results, for messages.
        suite: theirs; by default found by its name.

    Raises:
        UserError: a row is neither scored nor listed as not scored in some file (it names the first); no row is left;
            or figures cannot be computed from the file.
    """
    for result, file in zip(results, files, strict=True):
        if result.suite != results[0].suite:
            check_same([results[0], result], [files[0], file])
    keys = [_keys(result) for result in results]
    scored = [of_result[: len(result.items)] for of_result, result in zip(keys, results, strict=True)]
    if all(of_result == scored[0] for of_result in scored):
        check_same(results, files)
        return list(results), []
    somewhere = {key for of_result in scored for key in of_result}
    why: dict[RowKey, tuple[str, Unscored]] = {}
    notes = []
    for result, of_result in zip(results, keys, strict=True):
        unscored = zip(of_result[len(result.items) :], result.not_scored, strict=True)
        missing = {key: row for key, row in unscored if key in somewhere}
        for key, row in missing.items():
            why.setdefault(key, (result.name, row))
        if missing:
            causes = ", ".join(f"{n:,} {c}" for c, n in Counter(r.cause for r in missing.values()).most_common())
            notes.append(f"{counted(len(missing), 'row')} left out: not scored by {result.name} ({causes})")
    kept = [_kept(result, of_result, why) for result, of_result in zip(results, scored, strict=True)]
    _check_left(results, kept, files)
    out = []
    for result, items, of_result, file in zip(results, kept, scored, files, strict=True):
        lost = [
            Unscored(item.label, item.part, item.path, f"not scored by {name}", f"{row.cause}: {row.detail}")
            for item, key in zip(result.items, of_result, strict=True)
            if key in why
            for name, row in [why[key]]
        ]
        keep = [key not in why for key in of_result]
        out.append(_again(result, items, keep, lost, suite, file) if lost else replace(result, items=items))
    return out, notes


def _keys(result: SuiteResult) -> list[RowKey]:
    """Of every item, and after them of every row that was not scored."""
    rows: list[ItemResult | Unscored] = [*result.items, *result.not_scored]
    places = [row.label.rpartition(":") for row in rows]
    folders = {name: Path(name).parts for name in {place[0] for place in places}}
    shared = len(os.path.commonprefix([parts[:-1] for parts in folders.values()])) if folders else 0
    return [
        (row.part, row.path, folders[name][shared:], number)
        for row, (name, _, number) in zip(rows, places, strict=True)
    ]


def _kept(result: SuiteResult, keys: Sequence[RowKey], why: Mapping[RowKey, Any]) -> list[ItemResult]:
    """The items that stay, their prompts numbered in their order."""
    prompts: dict[int, int] = {}
    return [
        replace(item, prompt=prompts.setdefault(item.prompt, len(prompts)))
        for item, key in zip(result.items, keys, strict=True)
        if key not in why
    ]


def _check_left(results: Sequence[SuiteResult], kept: Sequence[list[ItemResult]], files: Sequence[str]) -> None:
    try:
        for items, file in zip(kept[1:], files[1:], strict=True):
            check_items([kept[0], items], [files[0], file])
    except UserError:
        for result, file in zip(results, files, strict=True):
            if result.rows_not_scored > len(result.not_scored):
                raise UserError(
                    f"{file}: names only {len(result.not_scored):,} of {result.rows_not_scored:,} rows that were "
                    "not scored, so that its rows cannot be told from others; evaluate again with --out"
                ) from None
        raise
    if not kept[0]:
        raise UserError(f"{files[-1]}: no row was scored by every model; compare models that can read the same rows")


def _again(
    result: SuiteResult,
    items: list[ItemResult],
    keep: Sequence[bool],
    lost: list[Unscored],
    suite: Suite | None,
    file: str,
) -> SuiteResult:
    """The result on some of its items."""
    suite = _known(result, suite, file)
    rows = [item.result() for item in items]
    found = cells(suite, rows)
    gone = Counter(
        key
        for item, stays in zip(result.items, keep, strict=True)
        if not stays
        for key in verdicts_of(suite, [item.result()])[0]
    )
    before = {(cell.part, cell.path): cell.not_scored for cell in result.cells}
    names = {(row.label, row.part, row.path) for row in lost}
    new = replace(
        result,
        headline=suite.headline(found, rows),
        cells=[
            replace(cell, not_scored=before.get(key, 0) + gone[key])
            for cell in found
            for key in [(cell.part, cell.path)]
        ],
        metrics=edge_metrics(rows, [np.array(item.lengths) for item in items], [item.prompt for item in items])
        | {"loss": np.nan},
        worst=[row for row in result.worst if (row.label, row.part, row.path) not in names],
        items=items,
        left_out=tuple(lost),
    )
    return _with_votes(new, result.votes, keep)


def _known(result: SuiteResult, suite: Suite | None, file: str) -> Suite:
    """The suite, which must give the file's figures for the file's rows."""
    try:
        suite = find_suite(result.suite) if suite is None else suite
    except UserError:
        raise UserError(
            f"{file}: its model has not scored the same rows as others, and {result.suite} is no suite of "
            "rmfast, so that its figures cannot be computed again; give --suite FILE.py"
        ) from None
    try:
        rows = [item.result() for item in result.items]
        again, problem = suite.headline(cells_of(*verdicts_of(suite, rows)), rows), "they come out other than there"
        same = same_figures(again, result.headline)
    except Exception as error:  # a user's suite may ask of rows what the file does not hold
        same, problem = False, f"{type(error).__name__}: {error}"
    if not same:
        raise UserError(
            f"{file}: its model has not scored the same rows as others, and its figures cannot be computed again from "
            f"the file ({problem}); evaluate on rows that all models can read"
        )
    return suite


def _with_votes(result: SuiteResult, before: Sequence[list[list[float]]] | None, keep: Sequence[bool]) -> SuiteResult:
    """The result with the votes of the items that stay, and what is made of them."""
    if before is None:
        return result
    votes = [of_item for of_item, stays in zip(before, keep, strict=True) if stays]
    result = replace(result, votes=votes)
    each = [np.array(of_item) for of_item in votes]
    if result.kind == "judge":  # [edges, asked]
        curves = vote_curves(result.items, each, both=result.figures["orders"] == "both")
        return replace(result, figures=result.figures | {"votes": curves})
    if result.members:  # [members, edges]
        members = [float(np.mean(gaps > 0)) for gaps in np.concatenate(each, axis=1)]
        return replace(result, about=result.about | {"members": members})
    return result
