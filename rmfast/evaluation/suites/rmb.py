"""RMB (Zhou et al., 2024): 49 scenarios, pairs and best-of-n lists, from the folders as published.

A list is right where the best answer is above every loser; ties lose. The overall score is the mean of the four
accuracies {Helpfulness, Harmlessness} x {pairwise, best-of-n}, each over its rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.errors import UserError
from rmfast.evaluation.suites.base import Cell, Result, Rows, Suite
from rmfast.evaluation.suites.items import duplicate_notes, read_items, surviving_rows

PARTS = {"Pairwise_set": "pairwise", "BoN_set": "best-of-n"}
GOALS = ("Helpfulness", "Harmlessness")
SCENARIOS = {
    "Brainstorming": ("Idea Development", "Problem Solving"),
    "Chat": ("Casual Conversation", "Discussion", "Supportive Conversation"),
    "Classification": ("Content Categorization", "Quality and Compliance Assessment"),
    "Closed QA": ("ContextBased", "OptionBased"),
    "Code": ("Data Management", "Development and Implementation", "Documentation", "Quality and Optimization"),
    "Generation": ("Creative Writing", "Professional Content Generation"),
    "Open QA": (
        *("Factual", "General Explanation", "Hypothetical Scenarios", "Interpretative Analysis"),
        *("Personal Opinion and Advice", "Technical and Practical Support"),
    ),
    "Reasoning": (
        *("Analytical Reasoning", "Critical Thinking", "Human Decision Making", "Logical Deduction"),
        "Pattern Recognition",
    ),
    "Rewrite": ("Paraphrasing", "PostQuality Assessment Rewriting", "Textual ExpansionReduction", "Tone Adjustment"),
    "Role Playing": ("General Character", "Specific Character"),
    "Summarization": ("Specialized Summaries", "Standard Summaries"),
    "Translation": (
        *("GeneralExcerpt Language Translation", "Literary and Cultural Translation"),
        "Technical and Scientific Translation",
    ),
}
FILES = [f"Helpfulness/{category}/{name}" for category, names in SCENARIOS.items() for name in names]
FILES += [*(f"Harmlessness/S{number}" for number in range(1, 12)), "Harmlessness/multi"]


def read(source: str) -> Rows:
    """Both sets of the folder RMB_dataset.

    Raises:
        UserError: no such folder, or no file in it.
    """
    root = next((p for p in (Path(source), Path(source) / "RMB_dataset") if any((p / s).is_dir() for s in PARTS)), None)
    if root is None:
        raise UserError(f"{source}: holds no {' or '.join(PARTS)}; give the benchmark's folder RMB_dataset")
    items, bad, notes = [], [], []
    for folder, part in PARTS.items():
        files = sorted((root / folder).rglob("*.json"))
        found = {file.relative_to(root / folder).with_suffix("").as_posix() for file in files}
        missing, more = [name for name in FILES if name not in found], sorted(found - set(FILES))
        if missing:
            notes.append(f"{part}: {len(missing)} of {len(FILES)} files are missing: {', '.join(missing)}")
        if more:
            notes.append(f"{part}: {len(more)} files are not of the benchmark: {', '.join(more)}")
        empty = []
        for file in files:
            good, broken = _read_file(file, part, file.relative_to(root / folder).with_suffix("").parts)
            items += good
            bad += broken
            if not good and not broken:
                empty.append(file.relative_to(root / folder).with_suffix("").as_posix())
        if empty:
            notes.append(f"{part}: {len(empty)} files hold no rows: {', '.join(empty)}")
    if not items and not bad:
        raise UserError(f"{root}: no .json file in {' or '.join(PARTS)}")
    return Rows(tuple(items), tuple(bad), (*notes, *duplicate_notes(items)))


def _read_file(file: Path, part: str, path: tuple[str, ...]) -> tuple[list, list]:
    columns = {
        "pairwise": ("pair_uid", lambda row: [row["chosen"], row["reject"]]),
        "best-of-n": ("bon_uid", lambda row: [row["bon_best"], *row["loser_list"]]),
    }
    uid, answers = columns[part]

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["conversation_input"]]
        texts = [answer["answer"] for answer in answers(row)]
        return {"prompt": turns, "responses": texts, "edges": [[0, loser] for loser in range(1, len(texts))]}

    return read_items(
        surviving_rows(file), lambda row: (part, path), convert, uid=lambda row: row[uid],
        writers=lambda row: [str(answer.get("llm_name") or "unknown") for answer in answers(row)],
    )  # fmt: skip


def headline(cells: Sequence[Cell], results: Sequence[Result]) -> dict[str, float]:
    """Overall score and its four cells; nan where a cell has no rows."""
    found = {(cell.path[0], cell.part): cell.accuracy for cell in cells if len(cell.path) == 1}
    four = {f"{goal} {part}": found.get((goal, part), np.nan) for goal in GOALS for part in ("best-of-n", "pairwise")}
    return {"overall": float(np.mean(list(four.values())))} | four


SUITE = Suite("rmb", "RMB: 49 scenarios, pairs and best-of-n lists (a folder RMB_dataset)", read, headline=headline)
