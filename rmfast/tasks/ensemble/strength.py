"""What an ensemble writes: the data with strengths, held-out figures of members and of rules, plots, summary."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.console import say
from rmfast.data.columns import Columns, read_columns
from rmfast.data.edge_columns import Edges
from rmfast.data.example import BadRow
from rmfast.data.files import write_text, written_whole
from rmfast.data.rows import parse_row
from rmfast.data.sources import read_rows
from rmfast.data.table import GroupTable, table_edges
from rmfast.data.tokenise import encode
from rmfast.errors import UserError
from rmfast.evaluation.combine import RULES, combined_metrics, mean_agreement, standardise
from rmfast.evaluation.scoring.rows import strength_row, unscored_row
from rmfast.jsonio import finite_or_null, json_line
from rmfast.report.ensemble.page import write_ensemble_report
from rmfast.report.ensemble.plots import HeldOut, Strengths
from rmfast.report.run_folder import read_run
from rmfast.report.summary import accuracy_line, percent, skipped_line
from rmfast.tasks.build.choices import choices
from rmfast.tasks.ensemble.members import Ensemble, open_folder, read_scores
from rmfast.tasks.ensemble.states import common_batches

COMMON = (
    "All members took the same batches (ensemble.state_memory has no room for the trunk's states of all rows): they "
    "differ by head, dropout and how often each row counts (Poisson(1))"
)


def finish(ensemble: Ensemble) -> None:
    """Write data.jsonl, report/ and summary.json from what the members scored; on rank 0.

    Raises:
        UserError: members are missing, which other jobs were to train.
    """
    members = range(ensemble.config.ensemble.members)
    kept = [read_scores(ensemble, member) for member in members]
    missing = [str(member) for member, scores_of in zip(members, kept, strict=True) if scores_of is None]
    if missing:
        raise UserError(
            f"{ensemble.folder}: members {', '.join(missing)} have not scored this data; train them "
            "(--ensemble.part NUMBER, or null for all that are missing)"
        )
    scores = [scores_of for scores_of in kept if scores_of is not None]
    open_folder(ensemble)  # its config is that of what is written now, also where nothing was left to train
    rewards = np.stack([s["data"] for s in scores])  # [M, R]
    judges = np.stack([ensemble.scores_groups(m) for m in members])  # [M, G]
    folder = ensemble.folder
    counts = write_data(folder / "data.jsonl", ensemble, rewards, judges)
    edges = table_edges(ensemble.whole)
    gaps = np.where(judges[:, edges.group], rewards[:, edges.better] - rewards[:, edges.worse], np.nan)
    strengths = Strengths.of(gaps, judges[:, edges.group])
    held_out = {
        name: HeldOut.of(np.stack([s[f"eval:{name}"] for s in scores]), table_edges(table))
        for name, table in ensemble.inputs.evals.items()
    }
    center = ensemble.config.objective.center
    figures: dict[str, Any] = {
        "members": len(scores),
        "folds": ensemble.config.ensemble.folds,
        "edges": strengths.mean.size,
        "nonfinite": strengths.broken,
        "negative_share": strengths.negative_share,
        "mean_of_std": _mean(strengths.std),
        "agreement": mean_agreement(gaps),
        "eval": {name: held_out_figures(h.rewards, h.edges, center) for name, h in held_out.items()},
    }
    together = ensemble.config.ensemble.mode != "full"  # other members have separate runs and summaries
    skipped = read_run(folder).skipped if together else ()
    said = remarks(figures, skipped) + ([COMMON] if common_batches(ensemble) else [])
    write_ensemble_report(folder, strengths, held_out, figures, said)
    say("\n" + summary(ensemble, figures, counts, said))
    if together:
        figures |= {"skipped_steps": len(skipped), "backends": choices(ensemble.config, ensemble.world.device)}
    write_text(folder / "summary.json", json.dumps(finite_or_null(figures), indent=1) + "\n")


def write_data(path: Path, ensemble: Ensemble, rewards: np.ndarray, judges: np.ndarray) -> dict[str, int]:
    """The rows of the training sources as they were read, with the columns of `rmfast score`.

    With folds a row also says which members scored it (`members`) and its `fold`. Lines that are no rows are left out.

    Args:
        rewards: [M, R]. judges: bool [M, G].

    Returns:
        Rows written, rows without rewards, and rows left out: "rows", "unscored", "unreadable".
    """
    counts = {"rows": 0, "unscored": 0, "unreadable": 0}
    whole, fold, means = ensemble.whole, ensemble.fold, read_columns(ensemble.config.data.columns)
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for columns, group in _rows(whole):
            if columns is None:
                counts["unreadable"] += 1
                continue
            counts["rows"] += 1
            if group is None:
                counts["unscored"] += 1
                line = unscored_row(columns, _why(columns, means, ensemble.inputs.tokenizer))
            else:
                first, last = whole.first_response[group], whole.first_response[group + 1]
                judging = np.flatnonzero(judges[:, group])
                line = strength_row(columns, parse_row(columns, means), rewards[judging, first:last])
                if fold is not None:
                    line |= {"members": judging.tolist(), "fold": int(fold[group])}
            file.write(json_line(line) + "\n")
    return counts


def _rows(whole: GroupTable) -> Iterator[tuple[dict[str, Any] | None, int | None]]:
    """Every row's columns (None where it is no object) and the row of `whole` that holds it (None where none does)."""
    offset = 0
    for store in whole.stores:
        here = 0
        for file, number, row in read_rows(store.meta["source"], "train"):
            if isinstance(row, BadRow):
                yield None, None
                continue
            found = here < len(store) and store.label(here) == f"{file}:{number}"
            yield row, offset + here if found else None
            here += found
        assert here == len(store), f"{store.meta['source']} changed while it was read"
        offset += len(store)


def _why(columns: dict[str, Any], means: Columns, tokenizer: PreTrainedTokenizerBase) -> str:
    """What keeps a row out of the training data."""
    try:
        found = encode(tokenizer, [parse_row(columns, means)])[0]
    except BadRow as bad:
        found = bad
    assert isinstance(found, BadRow)
    return f"{found.cause}: {found.detail}"


def held_out_figures(rewards: np.ndarray, edges: Edges, center: float) -> dict[str, Any]:
    """Accuracy of each member and of every rule, on rewards [M, R] as they are and standardised by member."""
    scaled = standardise(rewards)
    alone = [combined_metrics(r[None], edges, "mean", center=center)["accuracy"] for r in rewards]
    rules: dict[str, Any] = {}
    for rule in RULES:
        rules[rule] = combined_metrics(rewards, edges, rule, center=center)
        rules[f"{rule}, standardised"] = combined_metrics(scaled, edges, rule, center=center)
    del rules["majority, standardised"]  # votes know no scale
    gaps = rewards[:, edges.better] - rewards[:, edges.worse]
    return {"members": alone, "agreement": mean_agreement(gaps), "rules": rules}


def remarks(figures: dict[str, Any], skipped: Sequence[int] = ()) -> list[str]:
    """What a reader of the strengths must know. `skipped`: steps of some members that were left out."""
    folds, lines = figures["folds"], []
    if figures["nonfinite"]:
        lines.append(f"{figures['nonfinite']:,} strengths are not finite: a member is broken; see its summary.json")
    if skipped:
        lines.append(skipped_line(skipped))
    if folds is not None and folds == figures["members"]:
        lines.append("As many folds as members: one member scores each edge, and strength_std is 0 everywhere")
    if folds is None:
        lines.append("In-sample strengths lean to the labels, which members learnt; ensemble.folds scores unseen rows")
    return lines


def summary(ensemble: Ensemble, figures: dict[str, Any], counts: dict[str, int], said: Sequence[str]) -> str:
    """The console's final summary of an ensemble. `said`: its remarks."""
    folds = figures["folds"]
    how = "in-sample" if folds is None else f"out of sample, {folds} folds"
    lines = [
        f"Strength of {figures['edges']:,} preferences by {figures['members']} members ({how}): "
        f"{percent(figures['negative_share'])} below 0, mean std {figures['mean_of_std']:.3g}, "
        f"members agree on {percent(figures['agreement'])}"
    ]
    lines += said
    for name, found in figures["eval"].items():
        alone = np.array(found["members"])
        mean = found["rules"]["mean"]
        lines.append(
            f"Accuracy on {name}: members {percent(alone.min())} to {percent(alone.max())}, mean of them "
            f"{percent(float(alone.mean()))}; together {accuracy_line(mean)} on {mean['edges']:,} pairs"
        )
        lines.append(f"Combined by {rules_line(found['rules'])} (standardised by member: second)")
    left_out = {"rows that training cannot use (no rewards)": counts["unscored"]}
    left_out |= {"lines that are no rows (left out)": counts["unreadable"]}
    causes = "; ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
    folder = ensemble.folder
    lines += ["", f"Data     {folder / 'data.jsonl'} ({counts['rows']:,} rows{'; ' + causes if causes else ''})"]
    lines.append(f"Members  {folder / 'members'}")
    lines.append(f"Report   {folder / 'report' / 'report.html'}")
    words = [str(folder / "config.yaml"), "--task", "reward", "--data.train", str(folder / "data.jsonl")]
    if ensemble.config.data.train_weights is not None:
        words += ["--data.train_weights", "1"]
    words += ["--data.denoise", "soft_margin", "--run.dir", f"{folder}-denoised"]
    lines.append(f"Next     torchrun --standalone --nproc_per_node 1 rmfast/train.py {shlex.join(words)}")
    return "\n".join(lines)


def rules_line(rules: dict[str, Any]) -> str:
    """Accuracy by each rule, as they are and standardised, in per cent: "mean 61.2 | 60.9, ..."."""
    parts = []
    for rule in RULES:
        shares = [rules[key]["accuracy"] for key in (rule, f"{rule}, standardised") if key in rules]
        parts.append(f"{rule} {' | '.join(f'{100 * share:.1f}' for share in shares)}")
    return ", ".join(parts) + " %"


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
