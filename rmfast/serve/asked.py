"""What a request asks, whatever its protocol: rows to score, and how their scores become its answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmfast.data.example import BadRow, Example
from rmfast.data.row_kinds import RESPONSES, RowKind
from rmfast.data.rows import parse_row
from rmfast.errors import shown
from rmfast.serve.refusal import Refused

Floats = NDArray[np.float64]
COLUMNS = ("prompt", "responses", "tools", "chat_template_kwargs")
"""Of a row."""


@dataclass(frozen=True)
class Whole:
    """A text that stands as it is, or its token ids: nothing is appended, and the tokenizer's special tokens are added
    where `special` says so."""

    text: str | list[int]
    special: bool = False


@dataclass(frozen=True)
class Scored:
    """Of each row: rewards [N], those of each member [M, N], and tokens (prompts once for each response)."""

    rewards: Sequence[Floats]
    members: Sequence[Floats]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Asked:
    """A request.

    Args:
        rows: what is scored.
        answer: makes the body of the answer.
        prompts: equal for rows whose responses a vote compares; None for all different.
    """

    rows: Sequence[Example | Whole]
    answer: Callable[[Scored], dict[str, Any]]
    prompts: Sequence[str] | None = None


@dataclass(frozen=True)
class Served:
    """What clients are told of the models.

    Args:
        names: by which requests may name them; the first is said.
        label: of the reward, in a classifier's words.
        activated: whether the published config means a sigmoid of the reward where a client asks for "classes".
        rule: how members become one, "mean" where there is one. members: M.
    """

    names: tuple[str, ...]
    label: str
    activated: bool
    rule: str
    members: int

    def check_name(self, data: Mapping[str, Any]) -> None:
        """Refuse a request for another model."""
        name = data.get("model")
        if name is not None and name not in self.names:
            raise Refused(404, f"no model {shown(name)} here; it is {self.names[0]!r}")


def conversation(messages: Any, where: str, beside: Mapping[str, Any] | None = None) -> Example:
    """A whole conversation as a row: its last turn is the response.

    Args:
        beside: other columns of the row.

    Raises:
        Refused: it is none.
    """
    if not isinstance(messages, list) or not messages:
        raise Refused(422, f"{where}: not a list of messages but {type(messages).__name__}")
    beside = beside or {}
    if twice := sorted({"prompt", "responses"} & beside.keys()):
        raise Refused(422, f"{where}: `messages` and `{twice[0]}`: give one of them")
    return row({"prompt": messages[:-1], "responses": [[messages[-1]]], **beside}, where)


def row(columns: Mapping[str, Any], where: str, kind: RowKind = RESPONSES) -> Example:
    """A prompt and its responses as `rmfast score` reads them.

    Raises:
        Refused: the row cannot be used, or has other columns.
    """
    if other := sorted(columns.keys() - COLUMNS):
        raise Refused(422, f"{where}: {shown(other[0])} is not known; there are {', '.join(COLUMNS)}")
    if kind.answered and "responses" not in columns:
        raise Refused(422, f"{where}: no `responses`, the texts to score")
    unranked: dict[str, Any] = (
        {"edges": []} if kind.answered else {}
    )  # or each response would be preferred to all that follow
    try:
        return parse_row(dict(columns) | unranked, kind=kind)
    except BadRow as bad:
        raise Refused(422, f"{where}: {bad}") from None
