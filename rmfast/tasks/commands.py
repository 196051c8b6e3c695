"""What the commands of `rmfast` do."""

import json
import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmfast.checkpoint.export import CHECK_TEXTS, check_export, check_tokenizer, write_model
from rmfast.data.report import data_report
from rmfast.data.store import build_store
from rmfast.data.table import table_edges
from rmfast.data.tokenizer import byte_tokenizer, load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.combine import Rule, combined_metrics, standardise
from rmfast.evaluation.reward_model import RewardModel, load, model_folder
from rmfast.evaluation.rows import ReadRow, bad_rows, json_line, read_file, scored_row, tokenisable, unscored_row
from rmfast.evaluation.score import evaluate_table, score_table
from rmfast.models.config import DTYPES
from rmfast.report.summary import accuracy_line, percent, verdict
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
    paths = options.models
    combining = len(paths) > 1 or options.combine is not None or options.standardise
    if options.k is not None and options.combine != "mean-k-std":
        raise UserError("--k belongs to --combine mean-k-std")
    out = _out_file(options.out, options.data) if options.out else None
    _check_models(paths, options)
    rows = _read_for(paths, options, require_edges=True)
    result: dict[str, Any] = {"suite": "pairwise", "model": str(paths[0]), "data": options.data, "rows": len(rows)}
    if combining:
        figures, metrics = _combined(paths, rows, options)
        result = {key: value for key, value in result.items() if key != "model"} | figures
    else:
        model = _load(paths[0], options)
        table = model.table([row.example for row in rows if row.example])
        metrics, _ = evaluate_table(model.score_packs, table, budget=model.tokens_per_pack)
    unusable = bad_rows(rows)
    who = f" by {result['combine']} of {len(result['members'])} members" if combining else ""
    say(
        f"Accuracy on {options.data}{who}: {accuracy_line(metrics)} on {metrics['edges']:,} pairs, "
        f"{metrics['ties']} ties"
    )
    say(verdict(metrics))
    _say_unusable(rows, unusable)
    if out is not None:
        result |= {"rows_not_scored": sum(unusable.values()), "not_scored_by_cause": unusable}
        _write(out, json.dumps(result | finite_or_null(metrics), indent=1) + "\n")
        say(f"Figures: {out}")


def _combined(
    paths: Sequence[str], rows: Sequence[ReadRow], options: Namespace
) -> tuple[dict[str, Any], dict[str, float | int | str]]:
    """How the models, each of their heads a member, were combined, and their figures together."""
    examples = [row.example for row in rows if row.example]
    rewards: list[np.ndarray] = []
    edges = None
    for path in paths:  # one model is in memory at a time
        model = _load(path, options)
        table = model.table(examples)
        rewards.extend(score_table(model.score_packs, table, budget=model.tokens_per_pack).T)
        edges = edges or table_edges(table)  # lengths and weights are those of the first model's tokens
    assert edges is not None
    if len(rewards) == 1:
        raise UserError(f"--combine, --standardise: {paths[0]} is one model with one head: there is nothing to combine")
    members = np.stack(rewards)
    if options.standardise:
        members = standardise(members)
    rule: Rule = options.combine or "mean"
    k = 1.0 if options.k is None else options.k
    alone = [combined_metrics(member[None], edges, "mean")["accuracy"] for member in members]
    for number, accuracy in enumerate(alone):
        say(f"Member {number}: accuracy {percent(float(accuracy))}")
    figures = {"models": [str(path) for path in paths], "members": alone, "combine": rule}
    figures |= {"k": k} if rule == "mean-k-std" else {}
    return figures | {"standardised": options.standardise}, combined_metrics(members, edges, rule, k=k)


def _read_for(paths: Sequence[str], options: Namespace, *, require_edges: bool) -> list[ReadRow]:
    """The rows of --data; one that a model's tokenizer refuses is scored by none."""
    rows = read_file(options.data, require_edges=require_edges)
    for path in paths:
        rows = tokenisable(rows, load_tokenizer(model_folder(path), options.chat_template))
    return rows


def score(options: Namespace) -> None:
    """rmfast score"""
    out = _out_file(options.out, options.data)
    _check_models(options.models, options)
    rows = _read_for(options.models, options, require_edges=False)
    examples = [row.example for row in rows if row.example]
    scores: list[list[np.ndarray]] = []
    for path in options.models:  # one model is in memory at a time
        scores.append(_load(path, options).score_examples(examples))
    # Every head of every model is a member: each [members, N].
    rewards = iter([np.concatenate(own, axis=1).T for own in zip(*scores, strict=True)])
    lines = [json_line(_scored(row, rewards)) for row in rows if row.columns is not None]
    _write(out, "".join(f"{line}\n" for line in lines))
    unusable = bad_rows(rows)
    heads = sum(own[0].shape[1] for own in scores)
    many = f" ({heads} heads)" if heads > len(scores) else ""
    say(f"{len(examples):,} rows scored by {len(options.models)} model(s){many}: {out}")
    _say_unusable(rows, unusable)


def _scored(row: ReadRow, rewards: Iterator[np.ndarray]) -> dict[str, Any]:
    """A row's columns with what the models say of it."""
    assert row.columns is not None
    if row.example is None:
        return unscored_row(row.columns, row.error)
    mine = next(rewards)
    if len(mine) == 1:
        return row.columns | {"rewards": mine[0].tolist()}
    return scored_row(row.columns, row.example, mine)


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
