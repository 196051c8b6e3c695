"""rmfast score: the reward of every response of a file's rows."""

from argparse import Namespace
from collections import Counter

import numpy as np

from rmfast.commands.flags import check_models, grouped, load_models, out_file, read_by, reader, write_file
from rmfast.commands.words import columns_of
from rmfast.console import say
from rmfast.data.columns import uses_line
from rmfast.data.notes import note_lines
from rmfast.data.sources import split_note
from rmfast.evaluation.scoring.rows import (
    bad_line,
    columns_used,
    not_kept,
    noted,
    read_file,
    readable,
    written_rows,
)
from rmfast.jsonio import json_line
from rmfast.outputs.kinds import SCORED


def score(options: Namespace) -> None:
    """rmfast score"""
    out = out_file("--out", options.out, SCORED, read_by(options, "chat_template"))
    check_models(options.models, options)
    rows = read_file(options.data, columns_of(options))
    for path in options.models:  # a row that one model's tokenizer refuses is scored by none
        rows = readable(rows, reader(path, options))
    examples = [row.example for row in rows if row.example]
    # One model, or trunk with its models, is in memory at a time.
    groups = grouped(options.models, options)
    scores: list[list[np.ndarray]] = [load_models(group, options).score_examples(examples) for group in groups]
    # Every head of every model is a member: each [members, N].
    written = written_rows(rows, (np.concatenate(of_models, axis=1).T for of_models in zip(*scores, strict=True)))
    write_file(out, (f"{json_line(line)}\n".encode() for line in written))
    heads = sum(of_rows[0].shape[1] for of_rows in scores)
    many = f" ({heads} heads)" if heads > len(options.models) else ""
    say(f"{len(examples):,} rows scored by {len(options.models)} model(s){many}: {out}")
    if broken := sum(int((~np.isfinite(values)).sum()) for of_rows in scores for values in of_rows):
        say(f"{broken:,} scores are not finite, and null in the file: a model is broken")
    if split := split_note(options.data, "test"):
        say(split)
    say(f"columns: {uses_line(columns_used(rows))}")
    if gone := Counter(name for row, line in zip(rows, written, strict=True) for name in not_kept(row.columns, line)):
        counts = ", ".join(f"{name} ({count:,} rows)" for name, count in gone.items())
        say(f"replaced by this scoring, and only in {options.data} still: {counts}")
    if line := bad_line(rows, "scored"):
        say(line)
    for line in note_lines(noted(rows)):
        say(line)
