"""RewardBench (Lambert et al., 2024): 23 subsets of pairs in four sections; prior sets where their files are there.

A section's score is the mean of its subsets' accuracies, weighted as the authors do: by the subsets' published sizes,
with math counted as often as the six programming languages together. The overall score is the plain mean of the four.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rmfast.evaluation.suites.base import Cell, Path_, Result, Rows, Suite
from rmfast.evaluation.suites.items import as_turns, data_files, duplicate_notes, listed, read_files

SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154,
        "xstest-should-respond": 250, "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
        "hep-rust": 164,
    },
}  # fmt: skip
"""Weight of each subset: its rows, but for math-prm, whose 447 rows weigh what the code subsets do together."""
PRIOR = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
"""Sets from before the benchmark, in the authors' average with half a section's weight (`allenai/pref-test-sets`)."""
SECTION_OF = {name: section for section, names in SECTIONS.items() for name in names} | dict.fromkeys(PRIOR, "Prior")


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """The row as messages, which is how the authors' code gives all texts to a model."""
    chosen, rejected = row["chosen"], row["rejected"]
    if not isinstance(chosen, str) and chosen[0]["role"] != "assistant":  # the prompt is in them
        return {"chosen": chosen, "rejected": rejected}
    return {"prompt": as_turns(row["prompt"]), "chosen": chosen, "rejected": rejected}


def place(row: dict[str, Any], stem: str = "") -> tuple[str, Path_]:
    """Section and subset. A prior set is named by its file, as it has other subsets."""
    name, prior = row.get("subset"), stem.split("-0")[0]
    name = prior if prior in PRIOR or not isinstance(name, str) else name
    return "pairwise", (SECTION_OF.get(name, "other"), name)


def read(source: str) -> Rows:
    """Rows of the filtered set: a file, or a folder of the dataset, whose raw set is left out."""
    files, notes = data_files(source), []
    kept = [file for file in files if not file.name.startswith("raw")]
    if len(kept) < len(files) and any(file.name.startswith("filtered") for file in kept):
        notes.append(f"{len(files) - len(kept)} files raw* are left out: the benchmark is the filtered set")
        files = kept
    items, bad = read_files(source, files, "filtered", place, convert, writers=_writers)
    present = {item.path[1] for item in items}
    if missing := [name for names in SECTIONS.values() for name in names if name not in present]:
        notes.append(f"{len(missing)} of 23 subsets have no rows: {listed(missing)}")
    if other := sorted(present - SECTION_OF.keys()):
        notes.append(f"{len(other)} subsets are not of the benchmark and count in no section: {listed(other)}")
    return Rows(tuple(items), tuple(bad), (*notes, *duplicate_notes(items)))


def headline(cells: Sequence[Cell], results: Sequence[Result]) -> dict[str, float]:
    """Overall score and sections, over the subsets that are there; nan for a section without any."""
    found = {cell.path[1]: cell.accuracy for cell in cells if len(cell.path) == 2}
    scores = {}
    for section, weights in SECTIONS.items():
        here = [name for name in weights if name in found]
        total = sum(weights[name] for name in here)
        scores[section] = sum(weights[name] * found[name] for name in here) / total if total else np.nan
    overall = float(np.mean(list(scores.values())))
    if not any(name in found for name in PRIOR):
        return {"overall": overall} | scores
    prior = float(np.mean([found.get(name, np.nan) for name in PRIOR]))
    return {"overall": overall} | scores | {"Prior": prior, "overall with Prior": (4 * overall + prior / 2) / 4.5}


def _writers(row: dict[str, Any]) -> list[str]:
    names = [row.get("chosen_model"), row.get("rejected_model")]
    return [str(name) for name in names] if all(names) else []


SUITE = Suite("reward-bench", "RewardBench: 23 subsets of pairs in four sections", read, headline=headline)
