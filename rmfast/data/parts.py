"""A prompt that is spread over columns, or given more than once -> one prompt, and answers without it.

What agrees is used once and noted; what contradicts is a bad row. The rules are ours.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from rmfast.data.example import CONTRADICTION, WRONG_TYPE, Message, bad, is_messages
from rmfast.data.messages import asks, is_written, read_messages, written_messages
from rmfast.data.notes import Note
from rmfast.data.turns import begins_dialogue, ends_in_turn, has_turn

TWICE = "prompt given twice, used once"
TEXT_PROMPT = "prompt as text beside messages, read as a user's turn"
WRITTEN = "messages written as text, read as messages"
WRITTEN_SOME = "an answer is messages written as text that cannot be read as such, and stays text"
TWICE_SOME = "an answer begins with the prompt, and may be meant to: used as it is"
OTHER_PROMPTS = "answers whose conversations begin with different turns"
SEVERAL_TURNS = "an answer of several assistant turns in a row, read as one answer"
_SURE = 4, 16
"""Words, or else characters (for scripts without spaces), from which on a text is no coincidence."""
_ODD = re.compile(r"\s*(?:array\(|[\[{<]|human|user)", re.IGNORECASE)
"""What a text begins with that may be messages or a dialogue."""

Prompt = str | list[Message] | None


def is_long(text: str) -> bool:
    """Whether a text is too long to stand inside another by coincidence."""
    return len(text) >= _SURE[1] or len(text.split()) >= _SURE[0]


def plain(turn: Message) -> Message:
    """A turn as it is compared: white space at the ends of its text counts for nothing."""
    return turn | {"content": str(turn.get("content") or "").strip()}


def joined_prompt(ours: dict[str, Any], notes: list[Note]) -> Any:
    """The prompt of a row whose `data.columns` speaks of parts: system turn, history, what the user asks.

    `user` is a user's turn, to which `input` is appended after a blank line; a `prompt` of text is such a turn too.
    `history` holds messages or pairs of texts, a user's and the assistant's. A row without any part has the prompt that
    it has.

    Raises:
        BadRow: a part of a wrong type, or one that contradicts another.
    """
    prompt = read_prompt(ours.get("prompt"), notes)
    if not prompt and is_messages(turns_of := read_prompt(ours.get("user"), notes)):
        prompt, ours = turns_of, {name: value for name, value in ours.items() if name != "user"}
    asked = "\n\n".join(part for part in (_text(ours, "user"), _text(ours, "input")) if part.strip())
    if isinstance(prompt, str):
        asked, prompt = _same_text(prompt, asked), []
    if not is_messages(prompt or []):
        return prompt  # for the caller to refuse
    turns = _with_history(_history(ours.get("history") or []), prompt or [], notes)
    if prompt and asked.strip() not in ("", *(plain(turn)["content"] for turn in prompt)):
        bad(CONTRADICTION, "the column used as user is no turn of the prompt")
    if asked.strip() and not prompt:
        turns.append({"role": "user", "content": asked})
    system = _text(ours, "system").strip()
    first = plain(turns[0]) if turns else {}
    if system and first.get("role") == "system" and first["content"] != system:
        bad(CONTRADICTION, "the column used as system is not the prompt's system turn")
    if system and first.get("role") != "system":
        turns.insert(0, {"role": "system", "content": ours["system"]})
    return turns or ours.get("prompt")


def _with_history(history: list[Message], prompt: list[Message], notes: list[Note]) -> list[Message]:
    """The prompt's turns behind those of the history, unless it holds them; one system turn goes first.

    Raises:
        BadRow: two system turns that differ.
    """
    first = 1 if prompt and _is_system(prompt[0]) else 0
    if history and first and _is_system(history[0]):
        if plain(history[0]) != plain(prompt[0]):
            bad(CONTRADICTION, "the system turns of the prompt and of the history differ")
        history = history[1:]
    said = [plain(turn) for turn in prompt[first : first + len(history)]]
    if history and said == [plain(turn) for turn in history]:
        notes.append(Note(TWICE, f"the prompt holds the {len(history)} turns of the history"))
        return prompt
    return [*prompt[:first], *history, *prompt[first:]]


def _text(ours: dict[str, Any], name: str) -> str:
    value = ours.get(name, "")
    if not isinstance(value, str):
        bad(WRONG_TYPE, f"the column used as {name} is not text but {type(value).__name__}")
    return value


def _same_text(prompt: str, asked: str) -> str:
    if prompt.strip() and asked.strip() and prompt.strip() != asked.strip():
        bad(CONTRADICTION, "`prompt` and the column used as user hold different texts; ignore one: prompt=ignore")
    return asked if asked.strip() else prompt


def _history(value: Any) -> list[Message]:
    turns = read_messages(value)
    if is_messages(turns):
        return turns
    if not isinstance(turns, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in turns
    ):
        bad(WRONG_TYPE, "the column used as history holds neither messages nor pairs of texts")
    return [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def settle(prompt: Any, responses: list[Any], notes: list[Note]) -> tuple[Any, list[Any]]:
    """The prompt and the responses in one kind each, the prompt in one of them alone; `notes` gets what was done.

    Args:
        prompt, responses: as files hold them, in any shape; anything that is no prompt stays for the caller to refuse.

    Raises:
        BadRow: prompt and responses contradict each other.
    """
    if _are_plain(prompt, responses):
        return prompt, responses
    prompt, responses = read_prompt(prompt, notes), [read_messages(response) for response in responses]
    texts = [response for response in responses if type(response) is str]
    # Not all are: of a column of mixed shape `datasets` decodes what is JSON, of its neighbour not.
    if texts and all(type(r) is str or is_messages(r) for r in responses) and (found := written_messages(texts)):
        responses = [found.pop(0) if type(response) is str else response for response in responses]
        notes.append(Note(WRITTEN, "the responses"))
    elif texts and len(texts) == len(responses):
        if isinstance(prompt, str) and prompt.strip():
            return _texts_once(prompt, responses, notes)
        if any(map(is_written, responses)):
            notes.append(Note(WRITTEN_SOME, next(filter(is_written, responses))[:40]))
        return _answered_once(prompt, responses, notes) if prompt and is_messages(prompt) else (prompt, responses)
    if not all(map(is_messages, responses)) or not all(responses):
        return prompt, responses
    for response in responses:
        if len(response) > 1 and not asks(response[-1]) and not asks(response[-2]):
            said = (repr(str(turn.get("content"))[:40]) for turn in response[-2:])
            notes.append(Note(SEVERAL_TURNS, " and ".join(said)))
            break
    if isinstance(prompt, str):
        prompt = _as_turn(prompt, responses, notes)
    if not prompt:
        begin = [response[0] for response in responses if len(response) > 1]
        if begin.count(begin[0] if begin else {}) < len(begin) and any(plain(t) != plain(begin[0]) for t in begin):
            notes.append(Note(OTHER_PROMPTS, repr(str(begin[0].get("content"))[:40])))
        return prompt, responses
    if is_messages(prompt) and not any(asks(response[0]) for response in responses):
        prompt = _without_answer(prompt, [response[-1] for response in responses], notes)
    return _turns_once(prompt, responses, notes) if is_messages(prompt) else (prompt, responses)


def _are_plain(prompt: Any, responses: list[Any]) -> bool:
    """Whether prompt and answers are texts, and neither messages nor dialogues nor the prompt again."""
    text = prompt.strip() if type(prompt) is str else prompt
    if text is not None and type(text) is not str:
        return False
    for response in responses:
        if type(response) is not str or _ODD.match(response) or (text and text in response):
            return False
    return not (text and _ODD.match(text))


def read_prompt(value: Any, notes: list[Note]) -> Any:
    """A prompt from any shape: messages, also where they are written as text, or else the value as it is.

    Raises:
        BadRow: as `read_messages`.
    """
    prompt = read_messages(value)
    if isinstance(prompt, str) and (found := written_messages([prompt], ends=lambda role: True)):
        notes.append(Note(WRITTEN, "the prompt"))
        return found[0]
    return prompt


def _answered_once(prompt: list[Message], responses: list[str], notes: list[Note]) -> tuple[list[Message], list[str]]:
    """A prompt of messages and answers of text: without an answer in the first, or the question in the others."""
    prompt = _without_answer(prompt, [{"role": "assistant", "content": response} for response in responses], notes)
    asked = plain(prompt[-1])["content"]
    if not is_long(asked) or not any(response.startswith(asked) for response in responses):
        return prompt, responses
    if not asked.endswith("?") and len(asked.split()) < 2 * _SURE[0]:  # both may well begin with a short statement
        notes.append(Note(TWICE_SOME, repr(asked[:40])))
        return prompt, responses
    rests = [_rest(response, asked) for response in responses]
    if None in rests:
        notes.append(Note(TWICE_SOME, repr(asked[:40])))
        return prompt, responses
    notes.append(Note(TWICE, f"the answers begin with the prompt {asked[:40]!r}"))
    return prompt, [rest.lstrip() for rest in rests if rest is not None]


def _without_answer(prompt: list[Message], answers: list[Message], notes: list[Note]) -> list[Message]:
    """The prompt without an answer at its end, which one of those beside it must be.

    Raises:
        BadRow: the prompt's last answer is not among `answers`.
    """
    if len(prompt) < 2 or prompt[-1]["role"].lower() not in ("assistant", "model"):
        return prompt
    if plain(prompt[-1])["content"] not in [plain(answer)["content"] for answer in answers]:
        bad(CONTRADICTION, "the prompt ends in an answer, which is none of those beside it")
    notes.append(Note(TWICE, "the prompt ends in one of the answers"))
    return prompt[:-1]


def _texts_once(prompt: str, responses: list[str], notes: list[Note]) -> tuple[str | None, list[str]]:
    text = prompt.strip()
    if all(map(begins_dialogue, responses)) and not any(response.strip().startswith(text) for response in responses):
        if text in os.path.commonprefix(responses):
            notes.append(Note(TWICE, f"the texts hold the prompt {text[:40]!r}"))
            return None, responses
        if begins_dialogue(text):
            bad(CONTRADICTION, "the answers hold another dialogue than the prompt; prompt=ignore (--columns) drops it")
    if any(map(is_written, responses)):
        notes.append(Note(WRITTEN_SOME, next(filter(is_written, responses))[:40]))
    if not any(text in response for response in responses):  # as in nearly all rows
        return prompt, responses
    head = prompt.rstrip()
    rests = [_rest(response, head) for response in responses]
    whole = None not in rests and (is_long(head) or has_turn(head))
    if whole or (any(rests) and ends_in_turn(head)):
        notes.append(Note(TWICE, f"the texts begin with the prompt {head[:40]!r}"))
        space = prompt[len(head) :]
        return head, [space + answer if rest is None else rest for answer, rest in zip(responses, rests, strict=True)]
    # A dialogue that the prompt is a turn of, as text.
    _, found, rest = os.path.commonprefix(responses).partition(text)
    if found and is_long(text) and has_turn(rest):
        notes.append(Note(TWICE, f"the texts hold the prompt {text[:40]!r}"))
        return None, responses
    if is_long(head) and any(rest is not None for rest in rests):
        notes.append(Note(TWICE_SOME, repr(head[:40])))
    return prompt, responses


def _rest(text: str, head: str) -> str | None:
    """What follows in a text that begins with another one, and not in the middle of a word."""
    inside = head[-1].isalnum() and head[-1].isascii() and text[len(head) : len(head) + 1].isalnum()
    return text[len(head) :] if text.startswith(head) and not inside else None


def _as_turn(prompt: str, responses: list[list[Message]], notes: list[Note]) -> list[Message] | None:
    """A prompt of text beside messages: the turns that it is, or None where the responses hold it.

    Raises:
        BadRow: it is neither the first nor the last user's turn of the responses.
    """
    text = prompt.strip()
    if not text:
        return None
    whole = [response for response in responses if asks(response[0])]
    if not whole:
        notes.append(Note(TEXT_PROMPT, f"{text[:40]!r}"))
    if len(whole) < len(responses):
        return [{"role": "user", "content": prompt}]
    for response in whole:
        asked = [turn for turn in response[:-1] if turn["role"].lower() in ("user", "human")]
        if not asked or text not in (plain(asked[0])["content"], plain(asked[-1])["content"]):
            bad(
                CONTRADICTION,
                "`prompt` is neither the first nor the last user's turn of the messages beside it; data.columns "
                "(--columns) prompt=ignore leaves it out",
            )
    notes.append(Note(TWICE, f"the messages hold the prompt {text[:40]!r}"))
    return None


def _turns_once(
    prompt: list[Message], responses: list[list[Message]], notes: list[Note]
) -> tuple[list[Message], list[list[Message]]]:
    has_turn = not all(map(_is_system, prompt))
    if has_turn and not any(asks(response[0]) for response in responses):
        return prompt, responses
    first = responses[0][0]
    if _is_system(first) and all(_repeated([first, *prompt], response) > len(prompt) for response in responses):
        prompt = [first, *prompt]  # the prompt column leaves the system turn out
    cuts = [_repeated(prompt, response) for response in responses]
    for response, cut in zip(responses, cuts, strict=True):
        asks_again = response[0]["role"] == prompt[-1]["role"] and prompt[-1]["role"].lower() in ("user", "human")
        if not cut and len(response) > 1 and (_is_system(response[0]) or asks_again):
            bad(
                CONTRADICTION,
                f"the turn of role {response[0]['role']} that a response begins with is not the prompt's; data.columns "
                "(--columns) prompt=ignore leaves the prompt out",
            )
    if any(cuts):
        notes.append(Note(TWICE, f"the messages begin with {max(cuts)} of the prompt's turns"))
        responses = [response[cut:] for response, cut in zip(responses, cuts, strict=True)]
    if not has_turn:  # what is asked is in the responses
        shared = 0
        while all(len(r) > shared + 1 and plain(r[shared]) == plain(responses[0][shared]) for r in responses):
            shared += 1
        prompt, responses = [*prompt, *responses[0][:shared]], [response[shared:] for response in responses]
    return prompt, responses


def _is_system(turn: Message) -> bool:
    return turn["role"].lower() in ("system", "developer")


def _repeated(prompt: Sequence[Message], response: Sequence[Message]) -> int:
    """How many of the prompt's last turns a response begins with; all of them, or from one that asks on."""
    known, begun = [plain(turn) for turn in prompt], [plain(turn) for turn in response[: len(prompt)]]
    for count in range(min(len(known), len(response) - 1), 0, -1):
        last = known[len(known) - count :]
        if (count == len(known) or asks(last[0])) and begun[:count] == last:
            return count
    return 0
