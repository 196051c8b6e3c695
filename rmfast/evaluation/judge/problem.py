"""What an endpoint's errors mean: try again, leave this question, or stop and say what to mend."""

from dataclasses import dataclass
from typing import Literal

import openai

from rmfast.evaluation.judge.pace import retry_after

# retry: may pass by itself. refused: this question is not answered, others may be. fatal: no question will be answered.
Kind = Literal["retry", "refused", "fatal"]

SHORTEST = 8  # characters of a key
PASSING = (408, 409, 425, 429)  # and all of the server's, from 500


@dataclass(frozen=True)
class Problem:
    """Why a try failed.

    Attributes:
        cause: for counts. detail: for people, without the key.
        wait: seconds that the server asks for.
        at_start: fatal as long as nothing was answered: the address, the key or the model is wrong.
    """

    kind: Kind
    cause: str
    detail: str
    wait: float | None = None
    at_start: bool = False


def explain(error: Exception, timeout: float, key: str) -> Problem:
    """What an error of a try means.

    Args:
        timeout: seconds of the try. key: what must not show.
    """
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Problem("retry", "time-out", f"no answer in {timeout:g} s")
    if isinstance(error, openai.APIStatusError):
        return _status(error, _clean(error.message, key))
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        refused = type(cause).__name__ == "ConnectError"  # of httpx or httpx2, whichever the package uses
        return Problem("retry", "connection", _clean(cause, key) or type(cause).__name__, at_start=refused)
    return Problem("retry", "not a chat completion", _clean(error, key), at_start=True)


def _status(error: openai.APIStatusError, detail: str) -> Problem:
    status, cause = error.status_code, f"HTTP {error.status_code}"
    if status == 401 or error.code == "insufficient_quota":
        return Problem("fatal", cause, detail)
    if status in PASSING or status >= 500:
        return Problem("retry", cause, detail, retry_after(error.response.headers))
    return Problem("refused", cause, detail, at_start=status in (403, 404, 405))


def _clean(error: object, key: str) -> str:
    """An error's text on one short line, without the key: some servers quote it. What is shorter is a placeholder."""
    text = str(error) if len(key) < SHORTEST else str(error).replace(key, "***")
    return " ".join(text.split())[:300]


def advice(problem: Problem, url: str, model: str, models: str) -> str:
    """What is wrong at the start and how to mend it, in one line.

    Args:
        models: names that the server gives, or nothing.
    """
    said = f"({problem.cause}: {problem.detail})"
    if problem.cause == "connection":
        return f"--endpoint {url}: nothing answers there {said}; is the server up, and is this its address?"
    if problem.cause in ("HTTP 401", "HTTP 403"):
        return f"--endpoint {url} refuses the key {said}; set RMFAST_JUDGE_KEY (or OPENAI_API_KEY) to a valid one"
    if models:
        return f"--judge-model {model}: {url} does not serve it {said}; it serves {models}"
    if problem.cause in ("HTTP 404", "HTTP 405", "not a chat completion"):
        return f"--endpoint {url}: no chat completions there {said}; most servers have them under http://HOST:PORT/v1"
    return f"--endpoint {url} will not answer {said}"
