"""Ready token ids of a row: cut by their attention masks, and the prompt's joined in front."""

from typing import Any

import numpy as np

from rmfast.data.example import BAD_NUMBER, CONTRADICTION, EMPTY, MISSING_COLUMN, WRONG_TYPE, bad
from rmfast.data.notes import Note
from rmfast.errors import shown

_SPELLINGS = ("{}_ids", "{}_input_ids", "input_ids_{}")
_MASKS = ("{}_attention_mask", "attention_mask_{}")
_ANSWERS = frozenset(spelling.format(side) for spelling in _SPELLINGS for side in ("chosen", "rejected"))
PROMPT_IDS = frozenset(spelling.format("prompt") for spelling in (*_SPELLINGS, *_MASKS))
"""Columns of a prompt's ready ids, and of their masks."""
_MAX_ID = np.iinfo(np.int32).max
_SURE = 4  # ids of a prompt from which on answers do not begin with it by coincidence
TWICE = "prompt's token ids given twice, used once"
TWICE_SOME = "an answer's token ids begin with the prompt's, and may be meant to: used as they are"

Ids = list[int]


def has_ids(ours: dict[str, Any]) -> bool:
    """Whether a row, under rmfast's names, holds ready token ids."""
    return not _ANSWERS.isdisjoint(ours)


def read_ids(ours: dict[str, Any], notes: list[Note]) -> tuple[Ids, list[Ids], list[Ids]]:
    """The prompt's ids (none: inside the others), the chosen and the rejected answers', without the prompt's.

    Args:
        notes: gets what was done where answers begin with the prompt's ids.

    Raises:
        BadRow: a column is missing or no list of ids, or its mask does not fit.
    """
    chosen, rejected = (_several(ours, side) for side in ("chosen", "rejected"))
    front = read_prompt_ids(ours)
    begin = [bool(front) and ids[: len(front)] == front for ids in chosen + rejected]
    twice = len(front) >= _SURE and all(begin)
    if any(begin):
        notes.append(Note(TWICE if twice else TWICE_SOME, f"{len(front)} ids, {sum(begin)} of {len(begin)} answers"))
    cut = len(front) if twice else 0
    chosen, rejected = ([ids[cut:] for ids in answers] for answers in (chosen, rejected))
    if not all(front + ids if twice else ids for ids in chosen + rejected):
        bad(EMPTY, "an answer holds no token ids")
    return front, chosen, rejected


def read_prompt_ids(ours: dict[str, Any]) -> Ids:
    """The prompt's ids; none where no column holds them.

    Raises:
        BadRow: as `read_ids`.
    """
    prompt = _several(ours, "prompt", optional=True)
    if len(prompt) > 1:
        bad(WRONG_TYPE, "the prompt's ids are several lists")
    return prompt[0] if prompt else []


def holds_ids(value: Any) -> bool:
    """Whether a value is a list that begins with a token id."""
    return isinstance(value, list) and bool(value) and type(value[0]) is int


def check_ids(ids: Any, what: str) -> None:
    """Refuse what is no list of token ids.

    Raises:
        BadRow: it is something else, or holds a number that no tokenizer has.
    """
    if not isinstance(ids, list) or any(type(item) is not int or item < 0 for item in ids):
        bad(WRONG_TYPE, f"{what} is not a list of token ids")
    if any(item > _MAX_ID for item in ids):
        bad(BAD_NUMBER, f"{what} holds {shown(max(ids))}, which is beyond all token ids")


def _several(ours: dict[str, Any], side: str, optional: bool = False) -> list[Ids]:
    """The lists of ids of one side, from the columns that hold them under any name."""
    masks = [ours[name] for spelling in _MASKS if (name := spelling.format(side)) in ours]
    if any(mask != masks[0] for mask in masks):
        bad(CONTRADICTION, f"two attention masks of the {side} token ids differ")
    names = [name for spelling in _SPELLINGS if (name := spelling.format(side)) in ours]
    if not names and not optional:
        bad(MISSING_COLUMN, f"no `{side}_ids` beside other token ids; the row has {', '.join(map(repr, ours))}")
    found = []
    for name in names:
        # TRL's chosen_ids are cut already; the ids beside them under the older name are what the mask is of.
        masked = masks and (name == names[-1] or "input_ids" in name)
        found.append(_lists(ours[name], name, masks[0] if masked else None))
    if any(lists != found[0] for lists in found):
        bad(CONTRADICTION, f"{' and '.join(map('`{}`'.format, names))} hold different token ids")
    return found[0] if found else []


def _lists(value: Any, name: str, mask: Any) -> list[Ids]:
    many = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    lists = value if many else [value]
    for ids in lists:
        check_ids(ids, f"`{name}`")
    if mask is None:
        return lists
    masks = mask if many else [mask]
    if not isinstance(masks, list) or len(masks) != len(lists):
        bad(WRONG_TYPE, f"the attention mask of `{name}` is not of its length")
    return [_cut(ids, one, name) for ids, one in zip(lists, masks, strict=True)]


def _cut(ids: Ids, mask: Any, name: str) -> Ids:
    """The ids that a mask keeps: one run, with padding on one side or both."""
    if not isinstance(mask, list) or len(mask) != len(ids) or any(item not in (0, 1) for item in mask):
        bad(WRONG_TYPE, f"the attention mask of `{name}` is not a list of {len(ids)} times 0 or 1")
    if 1 not in mask:
        return []
    first, last = mask.index(1), len(mask) - mask[::-1].index(1)
    if 0 in mask[first:last]:
        bad(WRONG_TYPE, f"the attention mask of `{name}` has a hole")
    return ids[first:last]
