"""What the commands of `rmfast` do."""

import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmfast.checkpoint.export import CHECK_TEXTS, check_export, check_tokenizer, write_model
from rmfast.data.columns import uses_line
from rmfast.data.notes import note_lines
from rmfast.data.probe import taken_for_granted
from rmfast.data.report import data_report
from rmfast.data.sources import split_note
from rmfast.data.store import build_store
from rmfast.data.tokenizer import byte_tokenizer, load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reward_model import find_folder, load
from rmfast.evaluation.scoring.rows import (
    ReadRow,
    bad_rows,
    columns_used,
    not_kept,
    noted,
    read_file,
    readable,
    scored_row,
    unscored_row,
)
from rmfast.evaluation.scoring.score import score_table
from rmfast.jsonio import json_line
from rmfast.models.config import DTYPES
from rmfast.outputs.kinds import SCORED
from rmfast.outputs.overlap import Input, Output, check_overlap
from rmfast.tasks.options import check_models, columns_of, load_model, out_file, read_by, reader, say_date, write_file
from rmfast.trainer.log import say


def report(options: Namespace) -> None:
    """rmfast data report"""
    tokenizer = byte_tokenizer()
    if not options.model and (unread := [n for n in ("chat_template", "template_date") if getattr(options, n)]):
        raise UserError(f"--{unread[0].replace('_', '-')} is for the tokenizer of --model, and there is none")
    if options.model:
        tokenizer = load_tokenizer(options.model, options.chat_template, options.template_date)
        say_date(options.model, tokenizer)
    how: dict[str, Any] = {"samples": options.samples, "columns": columns_of(options)}
    with tempfile.TemporaryDirectory() as cache:
        stores = [build_store(source, tokenizer, cache, **how) for source in options.sources]
        if not options.model:
            say("Lengths are in bytes; --model PATH counts that model's tokens.")
        say(data_report(stores, options.max_length))


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


def export(options: Namespace) -> None:
    """rmfast export"""
    folder = Path(options.out)
    if folder.exists():
        raise UserError(f"--out {folder} exists already; name a folder that does not")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--out {folder}: there is no folder {folder.absolute().parent}")
    check_overlap([Output("--out", folder, "name another")], [Input("CKPT", find_folder(options.model))])
    dtype = DTYPES[options.dtype]
    template = {"chat_template": options.chat_template, "template_date": options.template_date}
    model = load(options.model, dtype=dtype, label=options.label, **template)
    say_date(options.model, model.tokenizer)
    state = {name: p.detach() for name, p in model.network.named_parameters()}
    if line := taken_for_granted(model.tokenizer):
        say(line)
    write_model(folder, hf=model.hf, config=model.network.config, state=state, tokenizer=model.tokenizer, dtype=dtype)
    # The model as it was, in the folder's dtype, against the folder as transformers reads it.
    table = model.table(CHECK_TEXTS)
    scores = torch.from_numpy(score_table(model.score_packs, table, budget=model.tokens_per_pack)).float()
    sequences = [s for row in range(len(table)) for s in table.sequences_of(row)]
    check_tokenizer(folder, model.tokenizer)
    difference = check_export(folder, sequences, scores, dtype)
    say(f"exported {folder}; transformers gives the same scores (largest difference {difference:.0e})")


def _say_unusable(rows: Sequence[ReadRow], counts: dict[str, int]) -> None:
    if not counts:
        return
    first = next(row for row in rows if row.error)
    causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.items())
    share = f"{sum(counts.values()):,} of {len(rows):,} rows"
    say(f"{share} could not be scored: {causes}; first: {first.label}: {first.error}")
