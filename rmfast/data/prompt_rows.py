"""A row used as a prompt to sample from: what it asks, without the answers that it may hold.

- `prompt`: text, messages, or token ids; or `messages`, a conversation; or ready ids (`prompt_ids`, see
  `rmfast.data.ids`). `tools` and `chat_template_kwargs` go to the chat template.
- Answers beside it (`chosen`, `rejected`, `responses`) are left out. Where they repeat the prompt or hold it, it is the
  prompt that a pair of the same row would have; where there is no prompt column, it is the turns with which their
  conversations begin, or their common text up to and including the last turn marker.
- An answer at a conversation's end is left out.

A prompt that cannot be known makes the row a bad one. The rules are ours.
"""

from typing import Any

from rmfast.data.beside import IDS_ALONE, text_of
from rmfast.data.columns import TURNS, Columns, UsedAs
from rmfast.data.example import EMPTY, MISSING_COLUMN, WRONG_ROLES, WRONG_TYPE, Example, Message, bad, is_messages
from rmfast.data.ids import PROMPT_IDS, check_ids, holds_ids, read_prompt_ids
from rmfast.data.messages import asks, several, template_arguments
from rmfast.data.notes import Note
from rmfast.data.parts import OTHER_PROMPTS, SEVERAL_TURNS, TWICE_SOME, WRITTEN_SOME, joined_prompt, read_prompt, settle
from rmfast.data.prompt import common_text, common_turns, up_to_turn
from rmfast.data.repeats import repeated_prompts

CUT = "a prompt that ends in an answer, used without it"
PARTED = "answers whose conversations part before their last turns; the turns that they share are the prompt"
MARKED = "no prompt column; the answers' common text up to its last turn marker is the prompt"

_ANSWERS = ("chosen", "rejected", "responses")
_OF_ANSWERS = frozenset({OTHER_PROMPTS, SEVERAL_TURNS, TWICE_SOME, WRITTEN_SOME})
"""Notes on answers, which are left out."""
_SPOKEN = frozenset({"system", "developer", "user", "human"})
"""Roles of turns that say something if they are there; a tool may well return nothing."""
_NO_ANSWER: Message = {"role": "assistant", "content": ""}


def parse_prompt(row: dict[str, Any], columns: Columns) -> Example:
    """The example without responses that a row's prompt is.

    Args:
        row: columns, none of which holds None.
        columns: what the row's columns are.

    Raises:
        BadRow: there is no prompt, or the row contradicts itself.
    """
    names, notes = tuple(row), list[Note]()
    ours = columns.read(row, answered=False)
    if not PROMPT_IDS.isdisjoint(ours) or holds_ids(ours.get("prompt")):
        return _ready(ours, columns, names, notes)
    if columns.has_turns and (joined := joined_prompt(ours, notes)) is not None:
        ours["prompt"] = joined
    prompt, sources = _settled(ours, row, columns, notes)
    if is_messages(prompt):
        prompt = _asking(prompt, notes)
    elif not isinstance(prompt, str | None):
        kind = type(prompt).__name__
        bad(WRONG_TYPE, f"the prompt is neither text nor a list of messages or of token ids but {kind}")
    others = tuple(name for name in names if name not in sources)
    repeated = repeated_prompts(prompt or None, [""], row, columns, others)  # an answer that says nothing
    _check(prompt, ours, names)
    used = frozenset(("prompt", *TURNS))
    tools, template_kwargs = template_arguments(ours)
    if is_messages(prompt):
        used |= {"tools", "chat_template_kwargs"}  # no template is rendered over text
    if sources:
        repeated |= {name for name in others if columns.targets.get(name, name) == "prompt"}
    return Example(
        prompt,
        (),
        tools=tools,
        template_kwargs=template_kwargs,
        notes=tuple(notes),
        columns=_uses(columns.uses(names, used, repeated), sources),
    )


def _uses(uses: UsedAs, sources: frozenset[str]) -> UsedAs:
    """What columns are used as, those among them of which the prompt was made."""
    return tuple((name, "prompt" if name in sources else use) for name, use in uses) if sources else uses


def _ready(ours: dict[str, Any], columns: Columns, names: tuple[str, ...], notes: list[Note]) -> Example:
    """A prompt of token ids, and the text beside them."""
    if holds_ids(ours.get("prompt")) and PROMPT_IDS.isdisjoint(ours):
        ids = ours["prompt"]
        check_ids(ids, "`prompt`")
        return Example(ids, (), columns=columns.uses(names, frozenset(("prompt",)), frozenset()))
    ids = read_prompt_ids(ours)
    if not ids:
        bad(EMPTY, "the prompt holds no token ids")
    text = text_of(ours.get("prompt"))
    if text is None and "prompt" in ours:
        notes.append(Note(IDS_ALONE, "prompt"))
    repeated = frozenset(name for name in names if text and columns.targets.get(name, name) == "prompt")
    uses = columns.uses(names, PROMPT_IDS, repeated)
    return Example(ids, (), texts=(text,) if text else (), notes=tuple(notes), columns=uses)


def _settled(
    ours: dict[str, Any], row: dict[str, Any], columns: Columns, notes: list[Note]
) -> tuple[Any, frozenset[str]]:
    """The prompt, and the columns that are no prompt by their names and of which it was made."""
    prompt = ours.get("prompt")
    if answers := [answer for name in _ANSWERS if name in ours for answer in several(ours[name])]:
        found: list[Note] = []
        prompt, answers = settle(prompt, answers, found)
        notes += [note for note in found if note.kind not in _OF_ANSWERS]
        if not _is_blank(prompt):
            return prompt, frozenset()
        made = _shared(answers, notes)
        return made, frozenset(name for name in row if made and columns.targets.get(name, name) in _ANSWERS)
    prompt = read_prompt(prompt, notes)
    turns = None if "messages" in columns.targets else read_prompt(row.get("messages"), notes)
    if turns and is_messages(turns) and not _is_blank(prompt):
        whole = [*turns, _NO_ANSWER] if asks(turns[-1]) else turns
        prompt, _ = settle(prompt, [whole], notes)
    if turns and _is_blank(prompt):
        return turns, frozenset(("messages",))
    return prompt, frozenset()


def _is_blank(prompt: Any) -> bool:
    return not prompt.strip() if isinstance(prompt, str) else not prompt


def _shared(answers: list[Any], notes: list[Note]) -> Any:
    """The prompt that answers hold; None where they share nothing that is one."""
    if all(answer and is_messages(answer) for answer in answers):
        before = [turns if asks(turns[-1]) else turns[:-1] for turns in answers]
        turns = common_turns(before)
        if any(len(turns) < len(one) for one in before):
            if all(turn["role"].lower() in ("system", "developer") for turn in turns):  # a system turn is everybody's
                return None
            notes.append(Note(PARTED, f"{len(turns)} turns"))
        return turns or None
    if all(isinstance(answer, str) for answer in answers):
        text = common_text(answers)
        if (head := up_to_turn(text)) is not None:
            rest = text[len(head) :]
            notes.append(Note(MARKED, repr(head[-40:])))
            return head + rest[: len(rest) - len(rest.lstrip("\n"))]  # a template's line ends there
    return None


def _asking(prompt: list[Message], notes: list[Note]) -> list[Message]:
    """A prompt without the answers at its end.

    Raises:
        BadRow: it holds nothing else.
    """
    end = len(prompt)
    while end and not asks(prompt[end - 1]):
        end -= 1
    if prompt and not end:
        bad(WRONG_ROLES, "the prompt has no turn to answer")
    if end < len(prompt):
        notes.append(Note(CUT, repr(str(prompt[end].get("content"))[:40])))
    return prompt[:end]


def _check(prompt: Any, ours: dict[str, Any], names: tuple[str, ...]) -> None:
    """Refuse what is no prompt, or asks nothing."""
    if prompt is None:
        if parts := [part for part in TURNS if part in ours]:
            bad(EMPTY, f"what is used as {', '.join(parts)} has no text")
        held = [f"`{name}`" for name in _ANSWERS if name in ours]
        why = f", and nothing that asks at the beginning of {', '.join(held)}" if held else " and no `messages`"
        bad(MISSING_COLUMN, f"no `prompt`{why}; the row has {', '.join(map(repr, names)) or 'no columns'}")
    if isinstance(prompt, str):
        if not prompt.strip():
            bad(EMPTY, "the prompt has no text")
    elif not prompt:
        bad(EMPTY, "the prompt is an empty list")
    elif prompt[-1]["role"].lower() in _SPOKEN and not (prompt[-1].get("content") or "").strip():
        bad(EMPTY, f"the {prompt[-1]['role']} turn that is to be answered has no text")
