"""rmfast's protocol, /score: prompts with their responses, as `rmfast score` reads them."""

from collections.abc import Mapping
from typing import Any

from rmfast.data.example import Example
from rmfast.serve.asked import Asked, Scored, Served, conversation, row
from rmfast.serve.refusal import Refused


def read(data: Mapping[str, Any], served: Served) -> Asked:
    """A row `{"prompt", "responses"}`, a conversation `{"messages"}`, or several of both under `rows`; each may have
    `tools` and `chat_template_kwargs`.

    The answer has `rewards` (one for each response, by the rule), `members` (a list for each member), and for several
    rows such an object for each under `rows`.
    """
    served.check_name(data)
    about = {"model": served.names[0], "rule": served.rule}
    if "rows" not in data:
        return Asked([_row(data, "the request")], lambda scored: about | _one(scored, 0))
    rows = data["rows"]
    if not isinstance(rows, list) or not rows:
        raise Refused(422, "`rows` is not a list of rows")
    read_rows = [_row(one, f"row {number}") for number, one in enumerate(rows)]
    return Asked(read_rows, lambda scored: about | {"rows": [_one(scored, i) for i in range(len(rows))]})


def _row(columns: Any, where: str) -> Example:
    if not isinstance(columns, dict):
        raise Refused(422, f"{where} is no object but {type(columns).__name__}")
    columns = {name: value for name, value in columns.items() if name != "model"}
    if "messages" not in columns:
        return row(columns, where)
    return conversation(columns.pop("messages"), where, columns)


def _one(scored: Scored, number: int) -> dict[str, Any]:
    return {"rewards": scored.rewards[number].tolist(), "members": scored.members[number].tolist()}
