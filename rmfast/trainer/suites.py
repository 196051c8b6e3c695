"""Suites during training: read and tokenised once, then scored by the run's engine on all ranks."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.console import say
from rmfast.data.columns import Columns
from rmfast.data.files import write_text
from rmfast.data.notes import note_lines
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import Reader
from rmfast.evaluation.scoring.score import ScorePacks, score_table
from rmfast.evaluation.suites.answers import usable
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import SuiteResult, result_json, suite_result
from rmfast.evaluation.suites.shared import results_of, share
from rmfast.jsonio import finite_or_null
from rmfast.parallel.world import World


class SuiteRun:
    """One suite of a run, ready to be scored again and again."""

    def __init__(self, name: str, source: str, reader: Reader, vocabulary: int, columns: Columns) -> None:
        self.source = source
        label, _, suite = name.rpartition(":")
        self.name = label or Path(suite).stem
        """What files and metrics call it."""
        try:
            self.suite = find_suite(suite)
            self.rows = self.suite.rows(source, columns)
            self.read = usable(self.rows.items, [reader])
        except UserError as error:
            raise UserError(f"eval.suites: {name}: {error}") from None
        self.shared = share(self.read.items)
        store = store_examples(self.shared.examples, reader.tokenizer)
        if store.meta["max_id"] >= vocabulary:
            raise UserError(f"eval.suites: {name}: token id {store.meta['max_id']} is beyond the model's vocabulary")
        self.table: GroupTable = build_table([store], kind=RESPONSES)[0]

    def run(self, score: ScorePacks, world: World, budget: int, about: dict[str, Any]) -> SuiteResult:
        """The result at this moment, on every rank."""
        scores = score_table(score, self.table, world, budget=budget).mean(1)
        rewards = np.split(scores, self.table.first_response[1:-1])
        answers = self.read.answers(results_of(self.read.items, self.shared, rewards))
        return suite_result(self.suite, self.rows, answers, about=about, data=self.source)


def open_suites(
    suites: Sequence[str], reader: Reader, vocabulary: int, world: World, columns: Columns
) -> list[SuiteRun]:
    """The suites of `eval.suites`, SUITE=PATH or LABEL:SUITE=PATH each; rank 0 says what they hold.

    Args:
        reader: how the model reads. vocabulary: rows of its embedding.

    Raises:
        UserError: a name that there is not, a path that holds nothing, two of one name.
    """
    parts = [suite.partition("=") for suite in suites]
    opened = [SuiteRun(name, source, reader, vocabulary, columns) for name, _, source in parts]
    names = [one.name for one in opened]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(f"eval.suites: two are called {twice}; give one a label, LABEL:SUITE=PATH")
    if world.main:
        for one in opened:
            lost = len(one.rows.unscored) + len(one.read.unscored)
            notes = (*one.rows.notes, *note_lines(one.read.notes))
            say(
                f"suite {one.name}: {len(one.read.items):,} rows, {len(one.table):,} prompts"
                + (f", {lost:,} rows cannot be scored" if lost else "")
                + "".join(f"; {note}" for note in notes)
            )
    return opened


def suite_metrics(result: SuiteResult) -> dict[str, Any]:
    """The figures of a result that a log can hold: headline figures and those of all edges."""
    flat = {re.sub(r"\W+", "_", name).lower(): value for name, value in result.headline.items()}
    counts = {"rows": result.rows, "rows_not_scored": result.rows_not_scored}
    plain = {k: v for k, v in result.metrics.items() if isinstance(v, int | float)} | counts
    named = {"suite": result.suite, "headline": finite_or_null(result.headline), "baseline": result.metrics["baseline"]}
    return plain | named | flat


def suite_line(name: str, step: int, result: SuiteResult) -> str:
    """A line for people."""
    figures = ", ".join(f"{figure} {value:.3f}" for figure, value in result.headline.items())
    return f"{name} after step {step}: {figures}"


def write_result(file: Path, result: SuiteResult) -> None:
    """Keep the whole result, for rmfast compare."""
    file.parent.mkdir(exist_ok=True)
    write_text(file, result_json(result.to_json()))
