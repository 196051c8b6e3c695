"""rmfast eval: one model, several as one, or a judge, on a suite."""

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.commands.flags import (
    check_differ,
    check_models,
    grouped,
    load_models,
    out_file,
    read_by,
    reader,
    write_file,
)
from rmfast.commands.judge import judge_log, make_judge, wants_judge
from rmfast.commands.words import columns_of
from rmfast.console import say
from rmfast.errors import UserError
from rmfast.evaluation.judge.figures import summary
from rmfast.evaluation.scoring.score import Progress
from rmfast.evaluation.suites.answers import Answers, answers_of_models
from rmfast.evaluation.suites.base import Item, Rows
from rmfast.evaluation.suites.find import find_suite
from rmfast.evaluation.suites.result import SuiteResult, result_json, suite_result, text
from rmfast.outputs.kinds import RESULT
from rmfast.outputs.overlap import Output, check_overlap
from rmfast.report.suite.console import suite_table
from rmfast.report.summary import accuracy_line, percent, verdict

NOTE = 200  # characters of a note that are printed


def evaluate(options: Namespace) -> None:
    """rmfast eval"""
    if options.k is not None and options.combine != "mean-k-std":
        raise UserError("--k belongs to --combine mean-k-std")
    if options.standardise and options.combine == "majority":
        raise UserError("--standardise changes nothing under --combine majority: votes know no scale; leave it out")
    suite, columns = find_suite(options.suite), columns_of(options)
    if columns.words and not suite.takes_columns:
        raise UserError(f"--columns belongs to the suites pairwise and best-of-n; {suite.name} has fixed columns")
    judging = wants_judge(options)
    inputs = read_by(options, *("judge", "criteria") if judging else (), "suite", "chat_template")
    out = out_file("--out", options.out, RESULT, inputs) if options.out else None
    if judging and (log := judge_log(options)) is not None:
        check_overlap([Output("--judge-log", log, "name another file")], inputs)
        if out is not None:
            check_differ(("--out", out), ("--judge-log", log))
    if judging == bool(options.models):
        raise UserError("name what is evaluated: CKPT, or a judge by --judge DIR or --endpoint URL; not both")
    if judging and (options.combine or options.standardise):
        raise UserError("--combine and --standardise belong to reward models; a judge has --votes")
    if judging and (options.label or options.scored_token):
        raise UserError("--label and --scored-token belong to reward models; a judge answers in words")
    check_models(options.models, options)
    rows = suite.rows(options.data, columns)
    if not rows.items:
        first = f"; the first: {_bad_row(rows.unscored[0])}" if rows.unscored else ""
        raise UserError(f"{options.data}: no row can be used, of {len(rows.unscored)}{first}")
    about, answers = (_by_judge if judging else _by_models)(options, rows.items)
    result = suite_result(suite, rows, answers, about=about, data=options.data)
    if out is not None:  # before anything that could fail: a model's hours are in it
        write_file(out, [result_json(result.to_json()).encode()])
    _say(result, answers, rows)
    if out is not None:
        say(f"Figures: {out}")


def _by_models(options: Namespace, items: Sequence[Item]) -> tuple[dict[str, Any], Answers]:
    paths, groups = options.models, grouped(options.models, options)
    readers = [reader(path, options) for path in paths]
    answers = answers_of_models(
        items,
        readers,
        [partial(load_models, group, options, _progress(group, len(groups))) for group in groups],
        rule=options.combine or "mean",
        k=1.0 if options.k is None else options.k,
        standardised=options.standardise,
    )
    name = options.name or " + ".join(_name(path) for path in paths)
    if answers.votes is None:
        if options.combine or options.standardise:
            raise UserError(f"--combine, --standardise: {paths[0]} is one model with one head: nothing to combine")
        return {"name": name, "kind": "reward model", "model": str(paths[0])}, answers
    about: dict[str, Any] = {"name": name, "kind": "ensemble", "models": [str(path) for path in paths]}
    about |= {"combine": options.combine or "mean", "standardised": options.standardise}
    if about["combine"] == "mean-k-std":
        about["k"] = 1.0 if options.k is None else options.k
    return about | {"members": answers.figures.pop("members")}, answers


def _by_judge(options: Namespace, items: Sequence[Item]) -> tuple[dict[str, Any], Answers]:
    judge = make_judge(options)
    judged = judge(items, say)
    for line in summary(judged.figures):
        say(line)
    who = options.judge_model or _name(options.judge)
    lengths = [np.array([len(text(r)) for r in item.example.responses], dtype=np.float64) for item in items]
    about: dict[str, Any] = {"name": options.name or who, "kind": "judge", "model": who, "endpoint": options.endpoint}
    about |= {key: getattr(options, key) for key in ("criteria", "reasoning", "orders", "allow_ties", "seed")}
    figures, date = judged.figures, judge.template_date
    return about, Answers(judged.results, [], lengths, "characters", judged.votes, figures, template_date=date)


def _name(path: str) -> str:
    """What people call a model: its folder, or the run that made it."""
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _progress(paths: Sequence[str], groups: int) -> Progress:
    """Prints the progress of a long evaluation, a line each ten seconds."""
    start = said = time.monotonic()
    who = f" by {', '.join(paths)}" if groups > 1 else ""

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done < total and now - said >= 10:
            said = now
            left = (now - start) / done * (total - done)
            print(f"{done:,} of {total:,} prompts scored{who}, {left / 60:.0f} min left", file=sys.stderr, flush=True)

    return tell


def _say(result: SuiteResult, answers: Answers, rows: Rows) -> None:
    for number, accuracy in enumerate(result.members):
        say(f"Member {number}: accuracy {percent(accuracy)}")
    who = f" by {result.about['combine']} of {len(result.members)} members" if result.members else ""
    edges, ties = result.metrics["edges"], result.metrics["ties"]
    say(
        f"Accuracy on {result.data}{who}: {accuracy_line(result.metrics)} on {edges:,} "
        f"{'pair' if edges == 1 else 'pairs'}, {ties} {'tie' if ties == 1 else 'ties'}"
    )
    if result.kind != "judge" or not result.metrics["nonfinite"]:  # which a judge's summary has named
        say(verdict(result.metrics))
    if table := suite_table(result):
        say("\n" + table)
    for note in result.notes:
        say(f"Note: {note if len(note) <= NOTE else note[:NOTE].rstrip() + ' ... (all of it is in --out)'}")
    if result.rows_not_scored:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in result.not_scored_by_cause.items())
        first = _bad_row((*rows.unscored, *answers.unscored)[0])
        say(f"{result.rows_not_scored:,} of {result.rows:,} rows could not be scored: {causes}; first: {first}")


def _bad_row(row: Any) -> str:
    return f"{row.label}: {row.cause}: {row.detail}"
