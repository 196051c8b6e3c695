"""What a row of preference data means once it is read: an `Example`; or why it means nothing: a `BadRow`."""

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

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
CONTRADICTION = "contradiction"
UNMAPPED = "looks like a prompt"

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


class UnmappedColumn(BadRow):
    """A column that looks like a prompt and that `data.columns` does not name: no row is used until it does."""

    def __init__(self, detail: str) -> None:
        super().__init__(UNMAPPED, detail)
        self.args = (detail,)  # what unpickling calls it with
        self.detail = detail


def bad(cause: str, detail: str) -> NoReturn:
    """Raise a `BadRow`."""
    raise BadRow(cause, detail)


def check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer takes.

    Raises:
        BadRow: it names the character.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(NOT_UTF8, f"character {text[error.start]!r} is half of a surrogate pair") from None


def is_messages(value: Any) -> bool:
    """Whether it is a list of nothing but objects."""
    if not isinstance(value, list):
        return False
    return not value or (type(value[0]) is dict and (len(value) == 1 or set(map(type, value)) == {dict}))


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
    """One prompt (None: inside the responses), N >= 0 responses of one kind, E >= 0 edges between them.

    A prompt to sample from has no response; then it may be ready ids.
    """

    prompt: Response | None
    responses: tuple[Response, ...]
    edges: tuple[Edge, ...] = ()
    per_edge_weight: bool = False
    """Whether `weight` is a list in the row. If not, the edges of the group share its one number."""
    tools: list[Any] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    prompt_ids: int = 0
    """How many of the ready ids with which every response begins were given as the prompt's."""
    texts: tuple[str | None, ...] = ()
    """Beside ready ids: what the prompt and then each response is as text (see `rmfast.data.beside`)."""
    notes: tuple[Note, ...] = ()
    """What was done to the row's columns to read them."""
    columns: tuple[tuple[str, str], ...] = ()
    """Each column of the row and what it was used as (see `rmfast.data.columns`)."""

    @property
    def contents(self) -> tuple[Response, ...]:
        """The responses, or the prompt where there is none: all of one kind, and of ready ids the whole sequences."""
        return self.responses or (cast(Response, self.prompt),)

    @property
    def is_messages(self) -> bool:
        return is_messages(self.prompt) or (bool(self.contents[0]) and is_messages(self.contents[0]))

    @property
    def is_text(self) -> bool:
        return isinstance(self.contents[0], str) and not self.is_messages

    @property
    def has_ids(self) -> bool:
        """Whether the responses are ready token ids."""
        return not isinstance(self.contents[0], str) and not self.is_messages

    def conversation(self, response: Response) -> list[Message]:
        """Prompt and answer as one list of messages; a string answers as the assistant."""
        answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
        return cast(list[Message], [*(self.prompt or ()), *answer])
