"""Texts beside ready token ids. The ids are taken; the tokenizer tells whether they say what the texts do.

Both sides are compared as the tokenizer decodes them, without special tokens and white space, as ids may come from a
chat template and sequences may be cut at either end. Reasoning before `</think>`, which templates leave out, is passed
over. The rules are ours.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NoReturn, cast

from transformers import PreTrainedTokenizerBase

from rmfast.data.example import CONTRADICTION, BadRow, Example, bad, check_unicode, is_messages
from rmfast.data.messages import read_messages
from rmfast.data.notes import Note
from rmfast.errors import shown

IDS_ALONE = "token ids taken, texts beside them cannot be compared with them"
PART = "token ids taken, which hold a part of the texts beside them"
_SURE = 8
"""Characters of a cut text that are enough to recognise it; fewer are counted as none."""


def text_of(value: Any) -> str | None:
    """What is compared of a column that holds a text or messages: the text, or what the last turn says."""
    with suppress(BadRow):  # messages of which a tokenizer would not be told either
        value = read_messages(value)
    if value and is_messages(value):
        value = value[-1].get("content")
    return value if isinstance(value, str) else None


def compare_texts(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[Note, ...]:
    """A note where the sequences of an example of ready ids hold its `texts` in part.

    Raises:
        BadRow: a text is not what its ids say.
    """

    def said(ids: list[int]) -> str:
        return "".join(cast(str, tokenizer.decode(ids, skip_special_tokens=True)).split())

    def meant(text: str | None) -> str:
        text = (text or "").rpartition("</think>")[2]
        check_unicode(text)
        return said(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt, answers = meant(example.texts[0]), [meant(text) for text in example.texts[1:]] or [""]
    part = False
    for ids, answer in zip(cast(tuple[list[int], ...], example.contents), answers, strict=True):
        whole = said(ids)
        front = said(ids[: example.prompt_ids]) if example.prompt_ids else whole
        if answer not in whole and not _overlap(answer, whole):
            _refuse(answer)
        # A sequence that was cut at the left may begin behind its prompt.
        cut = bool(answer) and not example.prompt_ids and whole.find(answer) < len(prompt)
        if prompt not in front and not _overlap(prompt, front) and not cut:
            _refuse(prompt)
        part = part or answer not in whole or prompt not in front
    return (Note(PART, shown(next(filter(None, example.texts))[:40])),) if part else ()


def _refuse(text: str) -> NoReturn:
    bad(
        CONTRADICTION,
        f"the token ids do not hold the text beside them that is {shown(text[:40])} without spaces; data.columns "
        "(--columns) NAME=ignore leaves a column out",
    )


def _overlap(text: str, said: str) -> bool:
    """Whether one of two texts holds the other, or begins with what the other ends in."""
    ends = any(text.startswith(said[at:]) for at in _places(said, text[:_SURE]))
    begins = any(said.startswith(text[at:]) for at in _places(text, said[:_SURE]))
    return bool(said) and (said in text or ends or begins)


def _places(text: str, head: str) -> Iterator[int]:
    """Where a text holds the beginning of another, if that is long enough to tell."""
    at = text.find(head) if len(head) == _SURE else -1
    while at >= 0:
        yield at
        at = text.find(head, at + 1)
