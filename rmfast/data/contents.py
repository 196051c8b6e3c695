"""What every row is asked for once it is read: types that fit together, turns in order, text in every response."""

from typing import Any

from rmfast.data.example import EMPTY, WRONG_ROLES, WRONG_TYPE, bad, is_messages
from rmfast.data.ids import check_ids, holds_ids
from rmfast.data.messages import asks
from rmfast.data.row_kinds import RowKind


def check_contents(prompt: Any, responses: list[Any], kind: RowKind) -> None:
    """Types that fit together, turns in order, text in every response."""
    if prompt is not None and not isinstance(prompt, str) and not is_messages(prompt):
        bad(WRONG_TYPE, f"the prompt is neither text nor a list of messages but {type(prompt).__name__}")
    if set(map(type, responses)) == {str}:
        if not kind.empty and not all(map(str.strip, responses)):
            bad(EMPTY, "a response has no text")
        if prompt == []:
            bad(WRONG_ROLES, "no turn before the answer")
        return
    if prompt is None and all(map(holds_ids, responses)):
        for ids in responses:
            check_ids(ids, "a response")
        return
    if isinstance(prompt, str) or not all(map(is_messages, responses)):
        bad(WRONG_TYPE, "the responses are not all text, all lists of messages or all lists of token ids")
    for response in responses:
        if not response or asks(response[-1]):
            bad(WRONG_ROLES, "prompt and answer do not end in an assistant turn")
        if not kind.empty and not (response[-1].get("content") or "").strip() and not response[-1].get("tool_calls"):
            bad(EMPTY, "the last assistant turn has no text")


def check_turns(responses: list[Any]) -> None:
    """Refuse answers to nothing."""
    if any(len(response) == 1 and is_messages(response) for response in responses):
        bad(WRONG_ROLES, "no turn before the answer")
