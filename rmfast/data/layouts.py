"""Column layouts of public preference sets: what their columns are in rmfast's terms."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rmfast.data.example import MISSING_COLUMN, WRONG_TYPE, bad
from rmfast.data.messages import objects
from rmfast.errors import shown


@dataclass(frozen=True)
class Choice:
    """Two answers in two columns, and a column that says which one is better."""

    answers: tuple[str, str]
    verdict: str
    values: tuple[float, float] | None = None
    """What the verdict is where the first and where the second is better; None: below and above 0."""

    @property
    def columns(self) -> dict[str, str]:
        """What each column is used as."""
        return dict.fromkeys(self.answers, "responses") | {self.verdict: "scores"}

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """`responses` and their `scores`; nothing of a row without the answers.

        Raises:
            BadRow: no verdict, or one that says nothing.
        """
        if not row.keys() >= set(self.answers):
            return {}
        verdict = row.get(self.verdict)
        if verdict is None:
            bad(MISSING_COLUMN, f"no `{self.verdict}`, which says which of {' and '.join(self.answers)} is better")
        if isinstance(verdict, bool) or not isinstance(verdict, int | float):
            bad(WRONG_TYPE, f"`{self.verdict}` holds {shown(verdict)}, which is not a number")
        if self.values is not None and verdict not in self.values:
            bad(
                WRONG_TYPE,
                f"`{self.verdict}` holds {shown(verdict)}, which is neither of {self.values[0]}, {self.values[1]}",
            )
        second = verdict if self.values is None else self.values.index(verdict) * 2 - 1
        return {"responses": [row[name] for name in self.answers], "scores": [0, second]}


@dataclass(frozen=True)
class Listed:
    """A column that holds an object for each answer."""

    column: str
    keys: Mapping[str, str]
    """Their key -> our column."""

    @property
    def columns(self) -> dict[str, str]:
        """What each column is used as."""
        return {self.column: " and ".join(self.keys.values())}

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        """Our columns, a list each; nothing of a row without the column.

        Raises:
            BadRow: it holds something else.
        """
        items = row.get(self.column)
        if items is None:
            return {}
        items = _unzipped(items, next(iter(self.keys))) if isinstance(items, dict) else items
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            bad(WRONG_TYPE, f"`{self.column}` is not a list of objects but {type(items).__name__}")
        for key in self.keys:
            if any(item.get(key) is None for item in items):
                bad(MISSING_COLUMN, f"an answer in `{self.column}` without `{key}`")
        return {ours: [item[key] for item in items] for key, ours in self.keys.items()}


@dataclass(frozen=True)
class Layout:
    """Their columns by name, and answers that are not in columns as rmfast has them."""

    names: Mapping[str, str]
    """Their column -> ours (`rmfast.data.columns.TARGETS`)."""
    answers: tuple[Choice | Listed, ...] = field(default=())

    @property
    def columns(self) -> dict[str, str]:
        """Every column that it reads, and as what."""
        return dict(self.names) | {name: use for part in self.answers for name, use in part.columns.items()}


LAYOUTS: dict[str, Layout] = {
    # Intel/orca_dpo_pairs; argilla's distilabel version calls the question input.
    "orca": Layout({"system": "system", "question": "user", "input": "user"}),
    # tatsu-lab/alpaca_farm's comparisons, and sets of the same columns with chosen and rejected.
    "alpaca": Layout(
        {"instruction": "user", "input": "input", "system": "system"},
        (Choice(("output_1", "output_2"), "preference", (1, 2)),),
    ),
    # Both formats of LLaMA-Factory's preference data; its older one lists chosen and rejected under output.
    "llama-factory": Layout(
        {
            "instruction": "user",
            "input": "input",
            "system": "system",
            "history": "history",
            "conversations": "prompt",
            "messages": "prompt",
            "output": "responses",
        }  # fmt: skip
    ),
    # nvidia/HelpSteer2 (preference) and nvidia/HelpSteer3 (preference): from -3, the first is better, to 3.
    "helpsteer": Layout(
        {"prompt": "user", "context": "prompt"},
        (
            Choice(("response_1", "response_2"), "preference_strength"),
            Choice(("response1", "response2"), "overall_preference"),
        ),
    ),
    # openbmb/UltraFeedback; argilla's binarised version has an answer in each of two columns.
    "ultrafeedback": Layout(
        {"instruction": "user", "chosen_response": "chosen", "rejected_response": "rejected"},
        (Listed("completions", {"response": "responses", "overall_score": "scores"}),),
    ),
}


def layouts_with_answers(names: Iterable[str]) -> list[str]:
    """The layouts whose answers a row of such columns holds."""
    have = set(names)
    return [name for name, layout in LAYOUTS.items() if any(part.columns.keys() <= have for part in layout.answers)]


def _unzipped(columns: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """An object of lists as a list of objects, as `datasets` writes such columns."""
    return objects({"role": columns.get(key)} | columns) if isinstance(columns.get(key), list) else [columns]
