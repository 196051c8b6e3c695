"""One row of preference data -> one `Example`: a prompt, its responses and the preference edges between them.

Formats (each with prompts and responses as strings or as lists of messages):

- `prompt`, `chosen`, `rejected`; or `chosen`, `rejected` alone, which then hold the prompt too (implicit prompt);
- a prompt of messages with string answers, which then are assistant turns;
- `rejected` as a list of several answers: one chosen over many;
- `prompt`, `responses`, best first, unless `edges` ([[better, worse], ...]), `ranks` (lower is better, ties give no
  edge) or `scores` (higher is better) says otherwise; the first of the three that is there counts;
- ready token ids: `chosen_ids`, `rejected_ids` (or `chosen_input_ids`, `rejected_input_ids`), with `prompt_ids` joined
  in front where present.

Optional columns `margin`, `target`, `weight`, `strength_mean`, `strength_std` hold a number, or a list of one per edge;
`tools` and `chat_template_kwargs` go to the chat template.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from rmfast.data.notes import Note

NOT_UTF8 = "not UTF-8"
NOT_JSON = "not JSON"
NOT_OBJECT = "not an object"
MISSING_COLUMN = "missing column"
WRONG_TYPE = "wrong type"
EMPTY = "empty"
WRONG_ROLES = "wrong roles"
NO_EDGE = "no edge"
BAD_NUMBER = "bad number"
TOO_FEW = "too few responses"
IDENTICAL = "identical"

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
_FLOAT32_MAX = float(np.finfo(np.float32).max)

Message = dict[str, Any]
Response = str | list[Message] | list[int]


class BadRow(ValueError):
    """Why a row cannot be used: a `cause` from the constants above (for counts) and a `detail` (for people)."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        # One short line that any terminal can print: details quote the data.
        self.detail = " ".join(detail.encode(errors="backslashreplace").decode().split())[:200]

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Edge:
    """Response `better` is preferred to response `worse` with probability `target`. Absent strengths are nan."""

    better: int
    worse: int
    margin: float = 0.0
    target: float = 1.0
    weight: float = 1.0
    strength_mean: float = math.nan
    strength_std: float = math.nan


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt (None: inside the responses), N >= 1 responses of one kind, E >= 0 edges between them."""

    prompt: str | list[Message] | None
    responses: tuple[Response, ...]
    edges: tuple[Edge, ...] = ()
    per_edge_weight: bool = False
    """Whether `weight` came as a list. If not, the edges of the group share its one number."""
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    prompt_ids: int = 0
    """How many of the ready ids with which every response begins came as the prompt's."""
    notes: tuple[Note, ...] = ()
    """What was done to the row's columns to read them."""

    @property
    def is_messages(self) -> bool:
        return isinstance(self.prompt, list) or (bool(self.responses[0]) and _is_messages(self.responses[0]))

    def conversation(self, response: Response) -> list[Message]:
        """Prompt and answer as one list of messages; a string answers as the assistant."""
        answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        return [*(self.prompt or ()), *answer]


def parse_row(row: dict[str, Any], *, require_edges: bool = True, allow_empty: bool = False) -> Example:
    """Read one row of any of the module's formats.

    Args:
        row: columns; a column that holds None counts as absent.
        require_edges: refuse rows that prefer nothing. Scoring passes False.
        allow_empty: accept responses without text, and read no strengths. Scoring, which makes them, passes True.

    Raises:
        BadRow: the row cannot be used.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if "responses" in row:
        prompt, responses, pairs = _ranked(row)
        front = 0
    else:
        prompt, responses, pairs, front = _chosen_rejected(row)
    if require_edges and not pairs:
        _bad(NO_EDGE, "no response is preferred to another")
    edges, per_edge_weight = _edges(row, pairs, strengths=not allow_empty)
    tools, template_kwargs = _template_arguments(row)
    example = Example(prompt, tuple(responses), edges, per_edge_weight, tools, template_kwargs, front)
    _check_contents(example, allow_empty)
    return example


def _bad(cause: str, detail: str) -> NoReturn:
    raise BadRow(cause, detail)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _ranked(row: dict[str, Any]) -> tuple[Any, list[Any], list[tuple[int, int]]]:
    """`responses` and the order that edges, ranks, scores or their place in the list give them."""
    responses = row["responses"]
    if not isinstance(responses, list):
        _bad(WRONG_TYPE, f"`responses` is not a list but {type(responses).__name__}")
    if not responses:
        _bad(EMPTY, "`responses` is an empty list")
    if "prompt" not in row:
        _bad(MISSING_COLUMN, f"no `prompt` beside `responses`; the row has {', '.join(map(repr, row))}")
    count = len(responses)
    if "edges" in row:
        return row.get("prompt"), responses, [_index_pair(pair, count) for pair in _list(row, "edges")]
    if "ranks" in row:
        keys = _numbers(row, "ranks", count)
    elif "scores" in row:
        keys = [-score for score in _numbers(row, "scores", count)]
    else:
        keys = [float(place) for place in range(count)]
    order = sorted(range(count), key=keys.__getitem__)
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :] if keys[a] < keys[b]]
    return row.get("prompt"), responses, pairs


def _chosen_rejected(row: dict[str, Any]) -> tuple[Any, list[Any], list[tuple[int, int]], int]:
    """One chosen answer over one or many rejected ones, as text, messages or token ids; last how many ids are in
    front."""
    suffix = next((s for s in ("_ids", "_input_ids") if f"chosen{s}" in row or f"rejected{s}" in row), "")
    names = (f"chosen{suffix}", f"rejected{suffix}")
    for name in names:
        if name not in row:
            _bad(MISSING_COLUMN, f"no `{name}`; the row has {', '.join(map(repr, row)) or 'no columns'}")
    chosen, rejected = (row[name] for name in names)
    many = isinstance(rejected, list) and bool(rejected) and isinstance(rejected[0], str | list)
    losers = rejected if many else [rejected]
    if rejected == [] and not suffix:
        _bad(NO_EDGE, "`rejected` is an empty list")
    prompt = None if suffix else row.get("prompt")
    front: Any = []
    if suffix:
        front = row.get("prompt_ids", row.get("prompt_input_ids", []))
        if not all(map(_is_ids, (front, chosen, *losers))):
            _bad(WRONG_TYPE, f"{', '.join(names)} and the prompt's ids must be lists of token ids")
        if not all((chosen, *losers)):
            _bad(EMPTY, f"{' or '.join(names)} holds no token ids")
        chosen, losers = front + chosen, [front + ids for ids in losers]
    return prompt, [chosen, *losers], [(0, 1 + place) for place in range(len(losers))], len(front)


def _index_pair(pair: Any, count: int) -> tuple[int, int]:
    ok = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < count for i in pair)
    if not ok or pair[0] == pair[1]:
        _bad(WRONG_TYPE, f"`edges` holds {pair!r}, not two different places in a list of {count} responses")
    return pair[0], pair[1]


def _list(row: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(row[name], list):
        _bad(WRONG_TYPE, f"`{name}` is not a list but {type(row[name]).__name__}")
    return row[name]


def _number(value: Any, name: str, low: float = -_FLOAT32_MAX, high: float = _FLOAT32_MAX) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _bad(WRONG_TYPE, f"`{name}` holds {value!r}, which is not a number")
    if not low <= value <= high:  # also catches nan, and integers that no float can hold
        _bad(BAD_NUMBER, f"`{name}` holds {str(value)[:40]}, not a number from {low:g} to {high:g}")
    return float(value)


def _numbers(row: dict[str, Any], name: str, count: int) -> list[float]:
    values = _list(row, name)
    if len(values) != count:
        _bad(WRONG_TYPE, f"`{name}` holds {len(values)} numbers for {count} responses")
    return [_number(value, name) for value in values]


_EDGE_COLUMNS: dict[str, tuple[float, float]] = {
    "margin": (-_FLOAT32_MAX, _FLOAT32_MAX),
    "target": (0.0, 1.0),
    "weight": (0.0, _FLOAT32_MAX),
    "strength_mean": (-_FLOAT32_MAX, _FLOAT32_MAX),
    "strength_std": (0.0, _FLOAT32_MAX),
}


def _edges(row: dict[str, Any], pairs: Sequence[tuple[int, int]], strengths: bool) -> tuple[tuple[Edge, ...], bool]:
    """The edges with their optional columns, and whether their weight came one per edge."""
    columns: list[dict[str, float]] = [{} for _ in pairs]
    for name, (low, high) in _EDGE_COLUMNS.items():
        if name not in row or (name.startswith("strength") and not strengths):
            continue
        values = row[name] if isinstance(row[name], list) else [row[name]] * len(pairs)
        if len(values) != len(pairs):
            _bad(WRONG_TYPE, f"`{name}` holds {len(values)} numbers for {len(pairs)} edges")
        for column, value in zip(columns, values, strict=True):
            if value is not None:
                column[name] = _number(value, name, low, high)
    edges = tuple(Edge(better, worse, **column) for (better, worse), column in zip(pairs, columns, strict=True))
    return edges, isinstance(row.get("weight"), list)


def _template_arguments(row: dict[str, Any]) -> tuple[list[Any] | None, dict[str, Any]]:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError:
            _bad(WRONG_TYPE, "`tools` is a string that is not JSON")
    if tools is not None and not isinstance(tools, list):
        _bad(WRONG_TYPE, f"`tools` is not a list but {type(tools).__name__}")
    template_kwargs = row.get("chat_template_kwargs", {})
    if not isinstance(template_kwargs, dict):
        _bad(WRONG_TYPE, f"`chat_template_kwargs` is not an object but {type(template_kwargs).__name__}")
    return tools or None, template_kwargs


def _check_contents(example: Example, allow_empty: bool) -> None:
    """Types that fit together, roles in order, text in every response."""
    prompt, responses = example.prompt, example.responses
    if prompt is not None and not isinstance(prompt, str) and not _is_messages(prompt):
        _bad(WRONG_TYPE, f"the prompt is neither text nor a list of messages but {type(prompt).__name__}")
    if all(isinstance(response, str) for response in responses):
        if not allow_empty and not all(map(str.strip, responses)):  # type: ignore[arg-type]
            _bad(EMPTY, "a response has no text")
        if not isinstance(prompt, list):
            return
    elif all(map(_is_messages, responses)):
        if isinstance(prompt, str):
            _bad(WRONG_TYPE, "the prompt is text, its responses are messages")
    elif prompt is None and all(map(_is_ids, responses)):
        return
    else:
        _bad(WRONG_TYPE, "the responses are not all text, all lists of messages or all lists of token ids")
    for response in responses:
        _check_roles(example.conversation(response), allow_empty)


def _check_roles(messages: list[Message], allow_empty: bool) -> None:
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or (content is None and not message.get("tool_calls")):
            _bad(WRONG_ROLES, f"a message without role or content: keys {', '.join(map(repr, message))}")
        if role not in ROLES:
            _bad(WRONG_ROLES, f"unknown role {role!r}")
        if content is not None and not isinstance(content, str):
            _bad(WRONG_TYPE, f"a message's content is not text but {type(content).__name__}")
    if not messages or messages[-1]["role"] != "assistant":
        _bad(WRONG_ROLES, "prompt and answer do not end in an assistant turn")
    if not any(message["role"] == "user" for message in messages):
        _bad(WRONG_ROLES, "no user turn")
    last = messages[-1]
    if not allow_empty and not (last.get("content") or "").strip() and not last.get("tool_calls"):
        _bad(EMPTY, "the last assistant turn has no text")
