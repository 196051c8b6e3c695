"""Why a request gets no reward, as its client reads it."""

from typing import Any

from rmfast.errors import OneLine

KINDS = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    422: "unprocessable",
    429: "too_many_requests",
    500: "server_error",
    503: "stopping",
    504: "timeout",
}


class Refused(OneLine):
    """A request that is answered by an HTTP status and one line.

    Attributes:
        closes: whether the connection is closed, as what else the client sends on it would not be understood.
    """

    def __init__(self, status: int, message: str, *, closes: bool = False) -> None:
        super().__init__(message)
        self.status, self.closes = status, closes

    def body(self) -> dict[str, Any]:
        """The answer, in the shape that OpenAI's and vLLM's clients read."""
        return error_body(self.status, str(self))


def error_body(status: int, message: str) -> dict[str, Any]:
    """What says that a request has failed."""
    return {"error": {"message": message, "type": KINDS.get(status, "error"), "code": status}}
