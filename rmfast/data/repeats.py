"""Columns beside those that are used and that look like a prompt: what they repeat, and whether they say more."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rmfast.data.columns import Columns, is_media, refuse_prompts
from rmfast.data.example import BadRow, Response, is_messages
from rmfast.data.messages import asks
from rmfast.data.parts import Prompt, is_long, read_prompt


def repeated_prompts(
    prompt: Any, responses: list[Any], row: dict[str, Any], columns: Columns, names: tuple[str, ...]
) -> frozenset[str]:
    """The names of columns that look like a prompt and repeat what is used.

    Raises:
        UnmappedColumn: some say more.
    """
    found = columns.prompts(names)
    more = [n for n in found if (is_media(n) and row[n] and row[n] != [None]) or not repeats(row[n], prompt, responses)]
    if more:
        raise refuse_prompts(more)
    return frozenset(found)


def repeats(value: Any, prompt: Prompt, responses: Sequence[Response]) -> bool:
    """Whether a further column says nothing that prompt and responses do not say: text, messages, lists of texts."""
    turns: Any = None
    with suppress(BadRow):  # no messages
        turns = read_prompt(value, [])
    if turns and is_messages(turns):
        said = [str(turn.get("content") or "") for turn in turns]
        if len(said) > 1 and not asks(turns[-1]):
            said.pop()  # an answer, which may be a third one
    else:
        said = _strings(value)
    return all(_said(text.strip(), prompt, responses) for text in said)


def _strings(value: Any) -> list[str]:
    """All texts at any depth."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _strings(item)]


def _said(text: str, prompt: Prompt, responses: Sequence[Response]) -> bool:
    """Whether a text is in what each response answers: a text or turn of it, or inside one."""
    for response in responses:
        asked: list[Any] = [prompt] if isinstance(prompt, str) else [turn.get("content") for turn in prompt or ()]
        if isinstance(response, str):
            asked += [response] if prompt is None else []
        else:
            asked += [turn.get("content") for turn in response[:-1]]  # type: ignore[union-attr]
        places = [place for place in asked if isinstance(place, str)]
        if text and not any(text == place.strip() or (is_long(text) and text in place) for place in places):
            return False
    return True
