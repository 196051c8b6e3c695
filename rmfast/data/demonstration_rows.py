"""A row used as a demonstration: one answer, or a conversation, to be learnt token by token.

- `messages`: a conversation; what follows its last answer is left out. Messages in a `prompt` beside it, with which it
  begins, are its prompt, of which nothing is learnt.
- `prompt`, `completion`: texts, messages, or one of each.
- `text`, all of which is learnt.
- Preferences (`chosen` and `rejected`, or `responses` in any order that a row may give): the answer that is preferred
  to others and to which none is; `responses` that hold one answer, which is what `rmfast sample --keep best` writes.

`tools` and `chat_template_kwargs` go to the chat template. Of several formats in a row the first is read. The formats
but the last are TRL's.
"""

from dataclasses import replace
from typing import Any, cast

import numpy as np

from rmfast.data.columns import DEMONSTRATED, TURNS, Columns
from rmfast.data.contents import check_contents, check_turns
from rmfast.data.example import EMPTY, MISSING_COLUMN, NO_EDGE, WRONG_ROLES, WRONG_TYPE, Example, bad, is_messages
from rmfast.data.messages import asks, template_arguments
from rmfast.data.notes import Note
from rmfast.data.parts import joined_prompt, read_prompt, settle
from rmfast.data.prompt import common_text, up_to_turn
from rmfast.data.repeats import repeated_prompts
from rmfast.data.row_kinds import RowKind
from rmfast.data.tokenise import common_prefix

UNANSWERED = "a conversation that does not end in an answer, used up to its last one"
SEVERAL_BEST = "several answers to which none is preferred; the first is taken"


def demonstrated(row: dict[str, Any], columns: Columns) -> dict[str, Any] | None:
    """A row's values under rmfast's names where one of them is a demonstration by its name."""
    ours = columns.read(row, answered=False, names=DEMONSTRATED)
    return ours if any(name in ours for name in ("messages", "completion", "text")) else None


def parse_demonstration(ours: dict[str, Any], row: dict[str, Any], columns: Columns, kind: RowKind) -> Example:
    """The example of one response that a row is.

    Args:
        ours: what `demonstrated` gives of it.
        row: columns, none of which holds None.

    Raises:
        BadRow: nothing to learn, or the row contradicts itself.
    """
    names, notes = tuple(row), list[Note]()
    form: str = next(name for name in ("messages", "completion", "text") if name in ours)
    used = {form}
    prompt, answer = None, ours[form]
    if form == "text":
        if not isinstance(answer, str):
            bad(WRONG_TYPE, f"`text` is not text but {type(answer).__name__}")
    else:
        used |= {"prompt", *TURNS}
        if columns.has_turns and (joined := joined_prompt(ours, notes)) is not None:
            ours = ours | {"prompt": joined}
        prompt = ours.get("prompt")
        if form == "completion" and prompt is None:
            bad(MISSING_COLUMN, f"no `prompt` beside `completion`; the row has {', '.join(map(repr, names))}")
        if form == "messages":
            answer = _conversation(answer, notes)
        prompt, (answer,) = settle(prompt, [answer], notes)
    check_contents(prompt, [answer], kind)
    if not prompt:
        check_turns([answer])
    tools, template_kwargs = template_arguments(ours)
    if is_messages(prompt) or is_messages(answer):
        used |= {"tools", "chat_template_kwargs"}  # no template is rendered over texts
    others = tuple(name for name in names if columns.targets.get(name, name) != form)
    repeated = repeated_prompts(prompt, [answer], row, columns, others)
    if prompt is None and "prompt" in ours:
        repeated |= {name for name in names if columns.targets.get(name, name) == "prompt"}
    return Example(
        prompt,
        (answer,),
        tools=tools,
        template_kwargs=template_kwargs,
        notes=tuple(notes),
        columns=columns.uses(names, frozenset(used), repeated),
    )


def _conversation(value: Any, notes: list[Note]) -> list[dict[str, Any]]:
    """The turns up to the last answer.

    Raises:
        BadRow: no messages, or none of them is an answer.
    """
    turns = read_prompt(value, notes)
    if not is_messages(turns):
        bad(WRONG_TYPE, f"`messages` is not a list of messages but {type(turns).__name__}")
    if not turns:
        bad(EMPTY, "`messages` is an empty list")
    end = len(turns)
    while end and asks(turns[end - 1]):
        end -= 1
    if not end:
        bad(WRONG_ROLES, "no turn of the messages is an answer")
    if end < len(turns):
        notes.append(Note(UNANSWERED, repr(str(turns[end].get("content"))[:40])))
    return cast(list[dict[str, Any]], turns[:end])


def best_answer(example: Example) -> Example:
    """The demonstration that preferences hold.

    Raises:
        BadRow: none of several answers is the best, or where the prompt ends cannot be known.
    """
    notes = list(example.notes)
    better, worse = ({getattr(edge, side) for edge in example.edges} for side in ("better", "worse"))
    best = sorted(better - worse) if example.edges else [*range(len(example.responses))]
    if not best or (not example.edges and len(best) > 1):
        bad(NO_EDGE, f"{len(example.responses)} answers, and none is the one to learn")
    if len(best) > 1:
        notes.append(Note(SEVERAL_BEST, f"answers {', '.join(str(place + 1) for place in best)}"))
    prompt, answer, front = example.prompt, example.responses[best[0]], example.prompt_ids
    if prompt is None and example.is_text:
        texts = cast(tuple[str, ...], example.responses)
        prompt = up_to_turn(common_text(texts))
        if prompt is None:
            bad(MISSING_COLUMN, "no `prompt`, and nothing in the answers says where it ends")
        answer = cast(str, answer)[len(prompt) :]
    elif example.has_ids and not front:
        ids = [np.array(response, dtype=np.int64) for response in example.responses]
        front = min(common_prefix(ids[0], other) for other in ids)
    texts_beside = (example.texts[0], example.texts[1 + best[0]]) if example.texts else ()
    return replace(
        example,
        prompt=prompt,
        responses=(answer,),
        edges=(),
        per_edge_weight=False,
        prompt_ids=front,
        texts=texts_beside,
        notes=tuple(notes),
    )
