"""What a judge is asked and what it answers; `endpoint` and `local` are the back ends."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Sampling:
    """How a judge writes.

    Attributes:
        temperature: 0 takes the most probable token; above 0 samples from the whole distribution.
        max_tokens: of an answer.
    """

    temperature: float = 0.0
    max_tokens: int = 1024


@dataclass(frozen=True)
class Request:
    """One question, to be sent as a user's message.

    Attributes:
        key: differs from that of every other question, sample and setting; see `rmfast.evaluation.judge.plan`.
    """

    key: str
    prompt: str


@dataclass(frozen=True)
class Answer:
    """What a judge wrote.

    Attributes:
        finish: why it ended, as the model says: "stop", "length" (cut off at max_tokens), ...
        prompt_tokens, completion_tokens: None where an endpoint does not say.
        tries: how often it was asked for.
    """

    text: str
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tries: int = 1


@dataclass(frozen=True)
class Failure:
    """Why a question got no answer: a cause for counts ("time-out", "HTTP 500") and a detail for people."""

    cause: str
    detail: str
    tries: int = 1


class Backend(Protocol):
    """A model that answers.

    Attributes:
        name: for people.
        identity: all that decides its answers beside the question; part of every key in the log.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer | Failure]]:
        """Every request once with its answer or failure, in any order.

        Raises:
            UserError: nothing can be asked at all (wrong address, key or model).
            RunError: answers stopped after some; what was yielded before holds.
        """
        ...
