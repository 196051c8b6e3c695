"""rmfast score: the reward of every response of a file's rows."""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rmfast.commands.flags import check_models, columns_of, load_model, out_file, read_by, reader, write_file
from rmfast.data.columns import uses_line
from rmfast.data.notes import note_lines
from rmfast.data.sources import split_note
from rmfast.evaluation.rows import (
    ReadRow,
    bad_rows,
    columns_used,
    json_line,
    not_kept,
    noted,
    read_file,
    readable,
    scored_row,
    unscored_row,
)
from rmfast.outputs.kinds import SCORED
from rmfast.trainer.log import say


def _read_for(paths: Sequence[str], options: Namespace, *, require_edges: bool) -> list[ReadRow]:
    """The rows of --data; one that a model's tokenizer refuses is scored by none."""
    rows = read_file(options.data, columns_of(options), require_edges=require_edges)
    for path in paths:
        rows = readable(rows, reader(path, options))
    return rows


def score(options: Namespace) -> None:
    """rmfast score"""
    out = out_file("--out", options.out, SCORED, read_by(options, "chat_template"))
    check_models(options.models, options)
    rows = _read_for(options.models, options, require_edges=False)
    examples = [row.example for row in rows if row.example]
    scores: list[list[np.ndarray]] = []
    for path in options.models:  # one model is in memory at a time
        scores.append(load_model(path, options).score_examples(examples))
    # Every head of every model is a member: each [members, N].
    rewards = iter([np.concatenate(own, axis=1).T for own in zip(*scores, strict=True)])
    written = [_scored(row, rewards) for row in rows]
    write_file(out, (f"{json_line(line)}\n".encode() for line in written))
    unusable = bad_rows(rows)
    heads = sum(own[0].shape[1] for own in scores)
    many = f" ({heads} heads)" if heads > len(scores) else ""
    say(f"{len(examples):,} rows scored by {len(options.models)} model(s){many}: {out}")
    if broken := sum(int((~np.isfinite(values)).sum()) for own in scores for values in own):
        say(f"{broken:,} scores are not finite, and null in the file: a model is broken")
    if split := split_note(options.data, "test"):
        say(split)
    say(f"columns: {uses_line(columns_used(rows))}")
    if gone := Counter(name for row, line in zip(rows, written, strict=True) for name in not_kept(row.columns, line)):
        counts = ", ".join(f"{name} ({count:,} rows)" for name, count in gone.items())
        say(f"replaced by this scoring, and only in {options.data} still: {counts}")
    _say_unusable(rows, unusable)
    for line in note_lines(noted(rows)):
        say(line)


def _scored(row: ReadRow, rewards: Iterator[np.ndarray]) -> dict[str, Any]:
    """A row's columns with what the models say of it."""
    if row.example is None or row.columns is None:
        return unscored_row(row.columns, row.error)
    return scored_row(row.columns, row.example, next(rewards))


def _say_unusable(rows: Sequence[ReadRow], counts: dict[str, int]) -> None:
    if not counts:
        return
    first = next(row for row in rows if row.error)
    causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.items())
    share = f"{sum(counts.values()):,} of {len(rows):,} rows"
    say(f"{share} could not be scored: {causes}; first: {first.label}: {first.error}")
