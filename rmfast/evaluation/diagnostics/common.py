"""Results of models that could not score the same rows, brought to the rows that all of them scored."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.errors import UserError
from rmfast.evaluation.diagnostics.headline import cells_of, row_of, same_figures, verdicts_of
from rmfast.evaluation.diagnostics.table import Data, check_same
from rmfast.evaluation.diagnostics.words import counted
from rmfast.evaluation.judge.votes import paired, vote_curve
from rmfast.evaluation.suites.base import Suite, cells
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import edge_metrics

RowKey = tuple[str, tuple[str, ...], tuple[str, ...], str]


def on_common_rows(
    results: Sequence[Data], files: Sequence[str], suite: Suite | None = None
) -> tuple[list[Data], list[str]]:
    """Results on the rows that every model has scored, and for each model that left some out a line that says so.

    Rows are told apart by part, group and place (file and number; a folder that holds all files does not count). Only
    a row that some result lists as not scored is left out; where all hold the same rows, they come back as they are.
    Of the others every figure is computed again on the rows that are left: headline, cells, metrics of all edges, an
    ensemble's members and the curves of votes. `worst` is cut to those rows. `left_out` names the rows that a model
    has scored and that are left out for another's sake, as `not_scored` does; that one, `rows` and what a judge says
    of its own answers stay those of the whole file. The loss is nan: it needs margins, which are not in the file.

    Args:
        files: names of the results, for messages.
        suite: theirs; by default found by its name.

    Raises:
        UserError: a row is neither scored nor listed as not scored in some file (it names the first); no row is left;
            or figures cannot be computed from the file.
    """
    for result, file in zip(results, files, strict=True):
        if result["suite"] != results[0]["suite"]:
            check_same([results[0], result], [files[0], file])
    keys = [_keys(result) for result in results]
    scored = [own[: len(result["items"])] for own, result in zip(keys, results, strict=True)]
    if all(own == scored[0] for own in scored):
        check_same(results, files)
        return list(results), []
    somewhere = {key for own in scored for key in own}
    why: dict[RowKey, tuple[str, Data]] = {}
    notes = []
    for result, own in zip(results, keys, strict=True):
        missing = {
            key: row
            for key, row in zip(own[len(result["items"]) :], result["not_scored"], strict=True)
            if key in somewhere
        }
        for key, row in missing.items():
            why.setdefault(key, (str(result["name"]), row))
        if missing:
            causes = ", ".join(f"{n:,} {c}" for c, n in Counter(r["cause"] for r in missing.values()).most_common())
            notes.append(f"{counted(len(missing), 'row')} left out: not scored by {result['name']} ({causes})")
    kept = [[key not in why for key in own] for own in scored]
    bare = [_renumbered(result, keep) for result, keep in zip(results, kept, strict=True)]
    _check_left(results, bare, files)
    out = []
    for result, items, keep, own, file in zip(results, bare, kept, scored, files, strict=True):
        lost = [
            {**{name: item[name] for name in ("label", "part", "path")}, **_because(*why[key])}
            for item, key, stays in zip(result["items"], own, keep, strict=True)
            if not stays
        ]
        out.append(_again(result, items["items"], keep, lost, suite, file) if lost else {**result, **items})
    return out, notes


def _keys(result: Data) -> list[RowKey]:
    """Of every item, and after them of every row that was not scored."""
    rows = [*result["items"], *result["not_scored"]]
    places = [row["label"].rpartition(":") for row in rows]
    folders = {name: Path(name).parts for name in {place[0] for place in places}}
    shared = len(os.path.commonprefix([parts[:-1] for parts in folders.values()])) if folders else 0
    return [
        (row["part"], tuple(row["path"]), folders[name][shared:], number)
        for row, (name, _, number) in zip(rows, places, strict=True)
    ]


def _because(name: str, row: Data) -> Data:
    return {"cause": f"not scored by {name}", "detail": f"{row['cause']}: {row['detail']}"}


def _renumbered(result: Data, keep: Sequence[bool]) -> Data:
    """The items that stay, their prompts numbered as they come, and what else tells rows from others."""
    prompts: dict[int, int] = {}
    items = [
        item | {"prompt": prompts.setdefault(item["prompt"], len(prompts))}
        for item, stays in zip(result["items"], keep, strict=True)
        if stays
    ]
    return {"suite": result["suite"], "items": items}


def _check_left(results: Sequence[Data], bare: Sequence[Data], files: Sequence[str]) -> None:
    try:
        check_same(bare, files)
    except UserError:
        for result, file in zip(results, files, strict=True):
            if result["rows_not_scored"] > len(result["not_scored"]):
                raise UserError(
                    f"{file}: names only {len(result['not_scored']):,} of {result['rows_not_scored']:,} rows that were "
                    "not scored, so that its rows cannot be told from others; evaluate again with --out"
                ) from None
        raise
    if not bare[0]["items"]:
        raise UserError(f"{files[-1]}: no row was scored by every model; compare models that can read the same rows")


def _again(
    result: Data, items: list[Data], keep: Sequence[bool], lost: list[Data], suite: Suite | None, file: str
) -> Data:
    """The result on some of its items."""
    suite = _known(result, suite, file)
    rows = [row_of(item) for item in items]
    found = cells(suite, rows)
    gone = Counter(key for item, stays in zip(result["items"], keep, strict=True) if not stays
                   for key in verdicts_of(suite, [row_of(item)])[0])  # fmt: skip
    before = {(cell["part"], tuple(cell["path"])): cell.get("not_scored", 0) for cell in result["cells"]}
    metrics = edge_metrics(rows, [_floats(item["lengths"]) for item in items], [item["prompt"] for item in items])
    names = {_name(row) for row in lost}
    new: Data = {
        "headline": suite.headline(found, rows),
        "cells": [
            vars(cell) | {"path": list(cell.path), "not_scored": before.get(key, 0) + gone[key]}
            for cell in found
            for key in [(cell.part, cell.path)]
        ],
        **{key: np.nan if key == "loss" else value for key, value in metrics.items()},
        "worst": [row for row in result["worst"] if _name(row) not in names],
        "items": items,
        "left_out": lost,
    }
    return result | new | _of_votes(result, items, keep)


def _known(result: Data, suite: Suite | None, file: str) -> Suite:
    """The suite, which must give the file's own figures for the file's own rows."""
    try:
        suite = find_suite(result["suite"]) if suite is None else suite
    except UserError:
        raise UserError(
            f"{file}: its model has not scored the same rows as others, and {result['suite']} is no suite of rmfast's "
            "own, so that its figures cannot be computed again; give --suite FILE.py"
        ) from None
    try:
        rows = [row_of(item) for item in result["items"]]
        again, problem = suite.headline(cells_of(*verdicts_of(suite, rows)), rows), "they come out other than there"
        same = same_figures(again, {name: np.nan if v is None else v for name, v in result["headline"].items()})
    except Exception as error:  # a user's suite may ask of rows what the file does not hold
        same, problem = False, f"{type(error).__name__}: {error}"
    if not same:
        raise UserError(
            f"{file}: its model has not scored the same rows as others, and its figures cannot be computed again from "
            f"the file ({problem}); evaluate on rows that all models can read"
        )
    return suite


def _of_votes(result: Data, items: Sequence[Data], keep: Sequence[bool]) -> Data:
    """Votes of the items that stay, and what is made of them."""
    if result["votes"] is None:
        return {}
    votes = [own for own, stays in zip(result["votes"], keep, strict=True) if stays]
    new: Data = {"votes": votes}
    each = [np.stack([_floats(line) for line in own]) for own in votes]
    if result["kind"] == "judge":  # [edges, asked]
        parts: dict[str, list[Any]] = {}
        for item, own in zip(items, each, strict=True):
            if len(own):
                parts.setdefault(item["part"], []).append(paired(own) if result["figures"]["orders"] == "both" else own)
        new["figures"] = result["figures"] | {"votes": {part: vote_curve(own).tolist() for part, own in parts.items()}}
    elif "members" in result:  # [members, edges]
        new["members"] = [float(np.mean(gaps > 0)) for gaps in np.concatenate(each, axis=1)]
    return new


def _name(row: Data) -> tuple[Any, ...]:
    return row["label"], row["part"], *row["path"]


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=np.float64)
