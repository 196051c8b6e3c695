"""Messages in the shapes in which files hold them -> one shape: a list of `{"role": ..., "content": ...}`.

- Keys that hold null are dropped at any depth: arrow gives all objects of a column the same keys, and fills in nulls.
- One message alone is a list of one. An object of lists (`{"role": [...], "content": [...]}`) is a list of objects.
- `from` and `value` (ShareGPT) are role and content, human and gpt the user and the assistant; a function_call is a
  tool call of the assistant, an observation a tool's turn.
- Content in parts is the parts' texts, one after another; parts that are no text are refused.
"""

import ast
import re
from collections.abc import Callable
from typing import Any

from rmfast.data.example import WRONG_ROLES, WRONG_TYPE, BadRow, Message, bad, is_messages
from rmfast.data.jsonfile import DOUBLED_KEY, parse_json
from rmfast.errors import shown

ASKING = frozenset(
    {"system", "developer", "user", "human", "tool", "function", "observation", "environment", "ipython"}
)
"""Roles whose turns are no answers. Which others there are is the chat template's to know."""

_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
_WRITTEN = re.compile(r"""\s*(array\()?\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
_MAY_BE = re.compile(r"""\s*(array\()?[\[{].*?['"](role|from)['"]\s*:""", re.DOTALL)
_DEPTH = 50  # of lists and objects inside a message or a tool
_PLAIN = (str, int, float, bool, type(None))


def read_messages(value: Any) -> Any:
    """A list of messages from any of the module's shapes; other values (text, ids) unchanged.

    Raises:
        BadRow: a turn without role or content, content that is no text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = objects(value)
    if value and is_messages(value):
        return [_message(turn) for turn in value]
    return value


def objects(value: dict[str, Any]) -> list[dict[str, Any]]:
    """An object of lists as a list of objects; another object as a list of it alone."""
    columns = {name: items for name, items in value.items() if items is not None}
    key = next((key for key in ("role", "from") if key in columns), None)
    if key is None or not isinstance(columns[key], list):
        return [value]
    count = len(columns[key])
    if any(not isinstance(items, list) or len(items) != count for items in columns.values()):
        bad(WRONG_TYPE, f"messages as an object of lists of different lengths: {', '.join(map(repr, columns))}")
    return [{name: items[place] for name, items in columns.items()} for place in range(count)]


def _message(turn: dict[str, Any]) -> Message:
    if len(turn) == 2 and type(turn.get("role")) is str and type(turn.get("content")) is str:
        return turn  # as nearly all are
    turn = without_nulls(turn)
    if "role" not in turn and isinstance(turn.get("from"), str):
        turn = _sharegpt(turn)
    role, content = turn.get("role"), turn.get("content")
    if isinstance(turn.get("tool_calls"), str):
        turn["tool_calls"] = without_nulls(from_json(turn["tool_calls"], "tool_calls"))
    if not isinstance(turn.get("tool_calls", []), list | type(None)):
        bad(WRONG_TYPE, f"a message's tool_calls are not a list but {type(turn['tool_calls']).__name__}")
    if isinstance(content, list):
        turn["content"] = content = "".join(map(_part, content))
    if not isinstance(role, str) or (content is None and not turn.get("tool_calls")):
        bad(WRONG_ROLES, f"a message without role or content: keys {', '.join(map(repr, turn))}")
    if content is not None and not isinstance(content, str):
        bad(WRONG_TYPE, f"a message's content is not text but {type(content).__name__}")
    return turn


def _sharegpt(turn: dict[str, Any]) -> Message:
    who, said = turn.pop("from"), turn.pop("value", None)
    if who != "function_call":
        return {"role": _SHAREGPT.get(who, who), "content": said} | turn
    call = _decoded(said) if isinstance(said, str) else said
    if not isinstance(call, dict) or not {"name", "arguments"} <= call.keys():
        bad(WRONG_TYPE, "a function_call turn is not a JSON object of name and arguments")
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]} | turn


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    kind = part.get("type", next(iter(part.keys() - {"text"}), "text")) if isinstance(part, dict) else "text"
    if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
        bad(WRONG_TYPE, f"a message holds a part of type {shown(kind)}, and only text is read")
    return text


def asks(turn: Message) -> bool:
    """Whether a turn is no answer, going by its role."""
    return turn["role"].lower() in ASKING


def without_nulls(value: Any, depth: int = 0) -> Any:
    """The same without keys that hold null, in the objects at any depth; lists keep theirs."""
    if isinstance(value, _PLAIN):
        return value
    if depth == _DEPTH:
        bad(WRONG_TYPE, f"lists or objects nested more than {_DEPTH} deep")
    if isinstance(value, dict):
        return {key: without_nulls(item, depth + 1) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item, depth + 1) for item in value]
    return value


def written_messages(texts: list[str], ends: Callable[[str], bool] = lambda role: role not in ASKING) -> Any:
    """What texts hold that are all lists of messages written as JSON or as Python prints them; None where they are not.

    Args:
        ends: whether a conversation may end in a turn of that role. Others are texts after all.

    Raises:
        BadRow: they begin as such lists do, and cannot be read.
    """
    if not all(map(_MAY_BE.match, texts)):
        return None
    found = [objects(turns) if isinstance(turns := _decoded(text), dict) else turns for text in texts]
    if not all(turns and is_messages(turns) and all(map(_is_turn, turns)) for turns in found):
        if not all(map(_WRITTEN.match, texts)):
            return None
        bad(
            WRONG_TYPE, "text that begins as a list of messages does, and is neither JSON nor what Python prints of one"
        )
    conversations = [read_messages(turns) for turns in found]
    return conversations if all(ends(turns[-1]["role"]) for turns in conversations) else None


def is_written(text: str) -> bool:
    """Whether a text is messages in JSON or as Python prints them."""
    return written_messages([text], ends=lambda role: True) is not None if _MAY_BE.match(text) else False


def _is_turn(value: dict[str, Any]) -> bool:
    """Whether an object that was written as text is a message, and not an answer in JSON that has a role."""
    return ("role" in value and ("content" in value or "tool_calls" in value)) or {"from", "value"} <= value.keys()


def _decoded(text: str) -> Any:
    """The value that a text is in JSON, or as Python prints it; None where it is neither.

    Raises:
        BadRow: an object in it has a key twice.
    """
    for read in (parse_json, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            if isinstance(error, BadRow) and error.cause == DOUBLED_KEY:
                raise
    return None


def several(value: Any) -> list[Any]:
    """The answers of a column: itself, or the items of a list that is no conversation and holds no ids."""
    return value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]


def template_arguments(ours: dict[str, Any]) -> tuple[list[Any] | None, dict[str, Any]]:
    """What a row, under rmfast's names, gives the chat template: its tools, and other arguments.

    Raises:
        BadRow: one of a wrong type, or text that is not JSON.
    """
    if "tools" not in ours and "chat_template_kwargs" not in ours:
        return None, {}
    tools = from_json(ours.get("tools") or None, "tools")
    if tools is not None and not isinstance(tools, list):
        bad(WRONG_TYPE, f"`tools` is not a list but {type(tools).__name__}")
    template_kwargs = from_json(ours.get("chat_template_kwargs") or None, "chat_template_kwargs") or {}
    if not isinstance(template_kwargs, dict):
        bad(WRONG_TYPE, f"`chat_template_kwargs` is not an object but {type(template_kwargs).__name__}")
    template_kwargs = without_nulls(template_kwargs)
    tools = [from_json(tool, "tools") for tool in tools or ()]
    return without_nulls(tools) or None, template_kwargs


def from_json(value: Any, name: str) -> Any:
    """A column's value, decoded where it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except BadRow as error:
        if error.cause == DOUBLED_KEY:
            raise
        bad(WRONG_TYPE, f"`{name}` is a string that is not JSON")
