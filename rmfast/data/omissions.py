"""What a chat template leaves out of a conversation that it renders.

Templates may drop what is scored: reasoning before `</think>`, fields and roles that they do not know, tool calls. A
row is used as its template writes it, with a note; a turn of an unknown role that is dropped makes the row a bad one.
White space and the marks `<think>` themselves never count, as each template sets them in another way. In turns before
the answer reasoning does not count either: templates of reasoning models leave it out there by design.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from rmfast.data.example import WRONG_ROLES, BadRow, Message
from rmfast.data.notes import Note
from rmfast.errors import shown

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
"""Roles that chat templates know; they take others or leave them out."""
ANSWER_CUT = "the chat template leaves out part of an answer that is scored"
TOOLS_CUT = "the chat template leaves out the tools"
PROMPT_CUT = "the chat template leaves out a turn of the prompt"

_REASONING = ("reasoning_content", "thinking", "reasoning")  # transformers gives templates one for another
_GAPS = re.compile(r"\s+|</think>")
_PROBE = "\ue000{}\ue001"  # characters for private use, which no row holds


def shared_turns(conversations: Sequence[Sequence[Message]]) -> int:
    """With how many equal turns all conversations begin."""
    columns = list(zip(*conversations, strict=False))
    return next((i for i, column in enumerate(columns) if any(turn != column[0] for turn in column)), len(columns))


def omissions(
    conversations: Sequence[Sequence[Message]], count: int, texts: Sequence[str], prompt: str | None
) -> tuple[Note, ...]:
    """Notes on what the texts of an example's conversations lack.

    Args:
        conversations: prompt and answer, one for each response.
        count: turns of the prompt, with which all of them begin.
        texts: what the template makes of each conversation.
        prompt: what it makes of the prompt alone; None where there is no such text.
    """
    turns = conversations[0][:count]
    notes = []
    dropped = next(_left_out(turns, _spoken, texts[0] if prompt is None else prompt), None)
    if dropped is not None:
        notes.append(Note(PROMPT_CUT, f"{dropped[0].get('role')}: {shown(dropped[1])}"))
    cut = []
    end_of = cache(partial(_end, turns))
    for conversation, text in zip(conversations, texts, strict=True):
        # Never behind the prompt's last turn: its header and the answer may begin alike.
        head = text if prompt is None else prompt if text.startswith(prompt) else text[: _common(prompt, text)]
        begin = end_of(head)
        first = next(_left_out(conversation[count:], _written, text, begin), None)
        if first is not None:
            cut.append((first[1], text[begin:]))
    if cut:
        notes.append(Note(ANSWER_CUT, f"{len(cut)} of {len(texts)} answers, without {shown(_missing(*cut[0]))}"))
    return tuple(notes)


def without_tools(tools: Sequence[Any], text: str, write: Callable[[], str]) -> tuple[Note, ...]:
    """A note where a text is the same without the tools.

    Args:
        write: renders the conversation without them.
    """
    functions = [tool.get("function", tool) if isinstance(tool, dict) else {} for tool in tools]
    names = [str(function.get("name")) for function in functions if isinstance(function, dict)]
    if any(name in text for name in names) or text != write():
        return ()
    return (Note(TOOLS_CUT, ", ".join(map(shown, names))),)


def check_unknown_roles(messages: Sequence[Message], write: Callable[[Sequence[Message]], str]) -> None:
    """Refuse turns of roles that are none of the usual ones and that the template leaves out.

    Args:
        write: renders messages.

    Raises:
        BadRow: there is one; or as `write`.
    """
    unknown = [i for i, turn in enumerate(messages) if str(turn.get("role")) not in ROLES and turn.get("content")]
    if not unknown:
        return
    marked = list(messages)
    for i in unknown:  # a text that is no part of the turn may be in another one too
        marked[i] = messages[i] | {"content": _PROBE.format(i)}
    text = write(marked)
    for i in unknown:
        if _PROBE.format(i) not in text:
            raise BadRow(WRONG_ROLES, f"the chat template leaves out turns of the role {messages[i].get('role')!r}")


def _left_out(
    turns: Sequence[Message], pieces: Callable[[Message], Iterator[str]], text: str, begin: int | None = None
) -> Iterator[tuple[Message, str]]:
    """Turns and the piece of each that the text lacks; pieces stand in the turns' order.

    Args:
        begin: where the turns begin in the text; None where they may also be in another order.
    """
    at = begin or 0
    for turn in turns:
        start = 0 if begin is None else at
        for piece in pieces(turn):
            found = text.find(piece, at)
            if found >= 0:
                at = found + len(piece)
            elif not _holds(text[start:], piece):
                yield turn, piece


def _end(turns: Sequence[Message], text: str) -> int:
    """Where in the text the turns end, as far as they are there."""
    at = 0
    for turn in turns:
        for piece in _spoken(turn):
            found = text.find(piece, at)
            at = found + len(piece) if found >= 0 else at
    return at


def _common(prompt: str, text: str) -> int:
    """Length of the text's part that is the prompt's."""
    return bisect_left(range(len(prompt)), True, key=lambda end: not text.startswith(prompt[: end + 1]))


def _missing(piece: str, text: str) -> str:
    """A piece without the longest beginning or end of it that the text holds, whichever is longer."""
    places = sorted({0, len(piece), *(place for gap in _GAPS.finditer(piece) for place in gap.span())})
    head = places[bisect_left(places, True, key=lambda end: piece[:end] not in text) - 1]
    tail = places[bisect_left(places, True, key=lambda begin: piece[begin:] in text)]
    return piece[head:] if head > len(piece) - tail else piece[:tail]


def _holds(text: str, piece: str) -> bool:
    """Whether a text holds a piece, as it is or as JSON has it, but for white space and marks of reasoning."""
    text = _bare(text)
    return any(_bare(form) in text for form in (piece, json.dumps(piece, ensure_ascii=False)[1:-1]))


def _bare(text: str) -> str:
    return "".join(text.split()).replace("<think>", "").replace("</think>", "")


def _texts(content: Any) -> Iterator[str]:
    """The texts of a message's content, which is a text or a list of parts."""
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str) and (text := text.strip()):
            yield text


def _spoken(turn: Message) -> Iterator[str]:
    """What must be left of a turn before the answer: its text after the reasoning, or else the tools that it calls."""
    texts = list(_texts(turn.get("content")))
    if turn.get("role") == "assistant":
        texts = [text for whole in texts if (text := whole.rpartition("</think>")[2].strip())]
        texts = texts or [name for name, _ in _calls(turn)]
    yield from texts


def _written(turn: Message) -> Iterator[str]:
    """What must be left of a turn of the answer: all of it."""
    for text in dict.fromkeys(turn.get(name) for name in _REASONING if isinstance(turn.get(name), str)):
        yield from _texts(text)
    yield from _texts(turn.get("content"))
    for name, arguments in _calls(turn):
        yield name
        parts = [part for pair in arguments.items() for part in pair] if isinstance(arguments, dict) else [arguments]
        for part in parts:
            yield from _texts(part)


def _calls(turn: Message) -> Iterator[tuple[str, Any]]:
    """Name and arguments of the tools that a turn calls."""
    calls = turn.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        call = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            yield call["name"], call.get("arguments")
