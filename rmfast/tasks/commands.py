"""What the commands of `rmfast` do."""

import json
import math
import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmfast.checkpoint.export import CHECK_TEXTS, check_export, check_tokenizer, write_model
from rmfast.data.report import data_report
from rmfast.data.store import build_store
from rmfast.data.tokenizer import byte_tokenizer, load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.reward_model import RewardModel, load, model_folder
from rmfast.evaluation.rows import ReadRow, bad_rows, read_file, strengths, tokenisable
from rmfast.evaluation.score import evaluate_table, score_table
from rmfast.models.config import DTYPES
from rmfast.report.summary import accuracy_line, verdict
from rmfast.trainer.log import finite_or_null, say


def report(options: Namespace) -> None:
    """rmfast data report"""
    tokenizer = load_tokenizer(options.model, options.chat_template) if options.model else byte_tokenizer()
    with tempfile.TemporaryDirectory() as cache:
        stores = [build_store(source, tokenizer, cache) for source in options.sources]
        if not options.model:
            say("Lengths are in bytes; --model PATH counts that model's tokens.")
        say(data_report(stores, options.max_length))


def evaluate(options: Namespace) -> None:
    """rmfast eval --suite pairwise"""
    out = _out_file(options.out, options.data) if options.out else None
    _check_models([options.model], options)
    rows = read_file(options.data, require_edges=True)
    model = _load(options.model, options)
    rows = tokenisable(rows, model.tokenizer)
    table = model.table([row.example for row in rows if row.example])
    metrics, _ = evaluate_table(model.score_packs, table, budget=model.tokens_per_pack)
    unusable = bad_rows(rows)
    say(f"Accuracy on {options.data}: {accuracy_line(metrics)} on {metrics['edges']:,} pairs, {metrics['ties']} ties")
    say(verdict(metrics))
    _say_unusable(rows, unusable)
    if out is not None:
        result = {"suite": "pairwise", "model": str(options.model), "data": options.data, "rows": len(rows)}
        result |= {"rows_not_scored": sum(unusable.values()), "not_scored_by_cause": unusable}
        _write(out, json.dumps(result | finite_or_null(metrics), indent=1) + "\n")
        say(f"Figures: {out}")


def score(options: Namespace) -> None:
    """rmfast score"""
    out = _out_file(options.out, options.data)
    _check_models(options.models, options)
    rows = read_file(options.data, require_edges=False)
    for path in options.models:  # a row that one model's tokenizer refuses is scored by none
        rows = tokenisable(rows, load_tokenizer(model_folder(path), options.chat_template))
    examples = [row.example for row in rows if row.example]
    members: list[list[np.ndarray]] = []
    for path in options.models:  # one model is in memory at a time
        members.append([s.mean(1) for s in _load(path, options).score_examples(examples)])
    rewards = iter(np.stack(member) for member in zip(*members, strict=True))  # each [members, N]
    lines = [_json(_scored(row, rewards)) for row in rows if row.columns is not None]
    _write(out, "".join(f"{line}\n" for line in lines))
    unusable = bad_rows(rows)
    say(f"{len(examples):,} rows scored by {len(options.models)} model(s): {out}")
    _say_unusable(rows, unusable)


def _json(columns: dict[str, Any]) -> str:
    """One line; what JSON does not know (dates, bytes) as text, what is not a finite number as null."""
    columns = _without_nan(columns)
    line = json.dumps(columns, ensure_ascii=False, default=str)
    # Half of a surrogate pair has no UTF-8: that row's text is escaped.
    return line if line.isascii() or _encodes(line) else json.dumps(columns, default=str)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scored(row: ReadRow, rewards: Any) -> dict[str, Any]:
    """A row's columns with what the models say of it."""
    assert row.columns is not None
    if row.example is None:
        return row.columns | {"rewards": None, "error": row.error}
    mine = next(rewards)
    if len(mine) == 1:
        return row.columns | {"rewards": mine[0].tolist()}
    extra = strengths(row.example, mine) if row.example.edges else {}
    return row.columns | {"rewards": mine.tolist()} | extra


def export(options: Namespace) -> None:
    """rmfast export"""
    folder = Path(options.out)
    if folder.exists():
        raise UserError(f"--out {folder} exists already; name a folder that does not")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--out {folder}: there is no folder {folder.absolute().parent}")
    dtype = DTYPES[options.dtype]
    model = load(options.model, dtype=dtype, chat_template=options.chat_template)
    state = {name: p.detach() for name, p in model.network.named_parameters()}
    write_model(folder, hf=model.hf, config=model.network.config, state=state, tokenizer=model.tokenizer, dtype=dtype)
    # The model as it was, in the folder's dtype, against the folder as transformers reads it.
    table = model.table(CHECK_TEXTS)
    scores = torch.from_numpy(score_table(model.score_packs, table, budget=model.tokens_per_pack)).float()
    sequences = [s for row in range(len(table)) for s in table.sequences_of(row)]
    check_tokenizer(folder, model.tokenizer)
    difference = check_export(folder, sequences, scores, dtype)
    say(f"exported {folder}; transformers gives the same scores (largest difference {difference:.0e})")


def _check_models(paths: Sequence[str], options: Namespace) -> None:
    """Wrong paths, templates and devices, answered before any data is read."""
    for path in paths:
        load_tokenizer(model_folder(path), options.chat_template)
    try:
        if torch.device(_device(options)).type not in ("cpu", "cuda"):
            raise UserError(f"--device {options.device}: models run on cpu or cuda")
        torch.empty(0, device=_device(options))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {options.device}: {str(error).splitlines()[0]}") from None


def _device(options: Namespace) -> str:
    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _load(path: str, options: Namespace) -> RewardModel:
    return load(
        path,
        _device(options),
        DTYPES[options.dtype],
        chat_template=options.chat_template,
        tokens_per_pack=options.tokens_per_pack,
    )


def _say_unusable(rows: Sequence[ReadRow], counts: dict[str, int]) -> None:
    if not counts:
        return
    first = next(row for row in rows if row.error)
    causes = ", ".join(f"{count:,} {cause}" for cause, count in counts.items())
    share = f"{sum(counts.values()):,} of {len(rows):,} rows"
    say(f"{share} could not be scored: {causes}; first: {first.label}: {first.error}")


def _out_file(path: str, data: str) -> Path:
    """An --out file, refused before any work is done where it could not be written or would replace the data."""
    out, source = Path(path), Path(data)
    if out.exists() and source.exists() and (out.samefile(source) or source.resolve() in out.resolve().parents):
        raise UserError(f"--out {out} would overwrite --data {data}; name another file")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")
    return out


def _write(path: Path, text: str) -> None:
    """Write a file aside and rename it; what exists and is no file (a pipe, a device) is written to."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror}") from None
