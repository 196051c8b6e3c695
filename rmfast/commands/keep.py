"""What rmfast sample does with rewards: keeps the best answers, and draws proxy against gold."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.commands.flags import check_models, grouped, load_models, out_file, reader, write_file
from rmfast.console import say
from rmfast.data.example import BadRow
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.rows import read_row
from rmfast.errors import UserError
from rmfast.evaluation.best_of_n.curves import candidates_of, curves
from rmfast.evaluation.best_of_n.disagree import disagreements
from rmfast.evaluation.best_of_n.keep import keep_rows
from rmfast.evaluation.best_of_n.rewards import combined_rewards
from rmfast.evaluation.combine import Rule
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.scoring.rows import ReadRow, bad_line, readable
from rmfast.evaluation.suites.result import result_json
from rmfast.jsonio import json_line
from rmfast.outputs.kinds import BEST_OF_N, PAGE, PICTURE
from rmfast.outputs.overlap import Input
from rmfast.report.best_of_n.page import write_best_of_n_report

FIGURES = "best_of_n.json"
OF_SAMPLING = ("stop_reasons", "log_probs")
"""Columns of a sampled row that are not a kept answer's."""
REPORT_FILES = {FIGURES: BEST_OF_N, "report.html": PAGE, "members.png": PICTURE, "rules.png": PICTURE}


def check_reward_models(options: Namespace) -> None:
    """Wrong paths and devices of --reward and --gold, answered before anything is drawn."""
    check_models([*options.reward, *([options.gold] if options.gold else [])], _scoring(options))


def report_folder(path: str, inputs: Sequence[Input]) -> Path:
    """--report, refused where the report could not be written or would replace other files than an earlier one's."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--report {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--report {folder}: cannot be made: {error.strerror}") from None
    for name, kind in REPORT_FILES.items():
        out_file("--report", str(folder / name), kind, inputs)
    return folder


def keep_best(options: Namespace, sampled: Sequence[dict[str, Any]], out: Path, report: Path | None) -> None:
    """Score sampled rows, write what is kept of them, and the report where one is asked for."""
    scoring = _scoring(options)
    rows = [_read(number, row) for number, row in enumerate(sampled, 1)]
    for path in [*options.reward, *([options.gold] if options.gold else [])]:
        rows = readable(rows, reader(path, scoring))
    if line := bad_line(rows, "scored"):
        say(line)
    examples = [row.example for row in rows if row.example]
    names, rewards = _rewards(options.reward, scoring, rows)
    how: dict[str, Any] = {"k": 1.0 if options.k is None else options.k, "standardised": options.standardise}
    rule: Rule = options.combine or "mean"
    kept = keep_rows(rows, rewards, options.keep or "best", rule=rule, **how)
    write_file(out, (f"{json_line(row)}\n".encode() for row in kept.rows))
    many = f"{len(names)} members combined by {rule}" if len(names) > 1 else "one reward model"
    say(f"{len(kept.rows):,} rows kept by {many}: {out}")
    if cut := sum(reason == "length" for row in sampled for reason in row["stop_reasons"]):
        say(f"{cut:,} answers were cut where there was no room; reward models read them as if they ended there")
    passed = [f"{count:,} {why}" for why, count in kept.passed_over.items()]
    if passed:
        say(f"passed over: {', '.join(passed)}")
    if report is None:
        return
    gold = [values.mean(0) for values in _rewards([options.gold], scoring, rows)[1]]
    found = curves(candidates_of(examples, rewards, gold), names, **how)
    write_file(report / FIGURES, [result_json(found.to_json()).encode()])
    chosen = disagreements(examples, combined_rewards(rewards, rule, **how), gold)
    title = f"{options.model}, judged by {', '.join(options.reward)}; gold: {options.gold}"
    files = write_best_of_n_report(report, found, chosen, title=title, notes=passed)
    say(f"proxy against gold over N: {files[-1]}")


def _scoring(options: Namespace) -> Namespace:
    """The options of reward models, which have templates and windows of theirs."""
    return Namespace(**{**vars(options), "chat_template": None, "template_date": None})


def _read(number: int, row: dict[str, Any]) -> ReadRow:
    """A sampled row, as if read from a file."""
    label, columns = f"row {number}", {name: value for name, value in row.items() if name not in OF_SAMPLING}
    try:
        return ReadRow(label, columns, read_row(label, columns, kind=RESPONSES), None)
    except BadRow as error:
        return ReadRow(label, columns, None, str(error))


def _rewards(paths: Sequence[str], options: Namespace, rows: Sequence[ReadRow]) -> tuple[list[str], list[Floats]]:
    """The members' names, every head of every model one, and of each usable row their rewards [members, N]."""
    examples = [row.example for row in rows if row.example]
    names: list[str] = []
    scores: list[list[Floats]] = []
    for group in grouped(paths, options):  # one model, or trunk with its models, is in memory at a time
        scores.append(load_models(group, options).score_examples(examples))
        heads = scores[-1][0].shape[1]
        names += group if heads == len(group) else [f"{group[0]}, head {head}" for head in range(heads)]
    return names, [np.concatenate(of_row, axis=1).T for of_row in zip(*scores, strict=True)]
