"""Demonstrations -> token ids, and which of them are targets.

Of a text with a prompt the targets are what differs from the tokenised prompt, eos included; without a prompt, all. Of
a conversation they are the assistant's turns: what the template marks as generated ({% generation %}), or else what
follows the conversation cut before the turn, with the header of an answer to come, up to the end of the conversation
that is cut after it. Nothing is found by searching for a text. A token across a turn's border counts as the turn's, as
in transformers' masks.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import EMPTY, BadRow, Example, Message
from rmfast.data.messages import asks
from rmfast.data.notes import Note
from rmfast.data.row_kinds import Turns
from rmfast.data.template import TEMPLATE_ERROR, marked_tokens, marks_answers, render
from rmfast.data.tokenise import Encoded, encode, write
from rmfast.errors import UserError, shown

OTHER_HEADER = "the chat template's header of an answer to come is not that of an answer that is there"
ANSWER_FIRST = "a conversation that begins with an answer, which is not learnt"


def encode_demonstrations(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], turns: Turns
) -> list[Encoded | BadRow]:
    """Tokenise examples of one response each; see `rmfast.data.tokenise.encode`.

    Args:
        turns: which of the assistant's turns are learnt. Those of a prompt never are.

    Raises:
        UserError: as `encode`; the template renders earlier turns in another way once others follow, so that where
            they are in the whole cannot be known, and they are asked for.
    """
    texts = iter(encode(tokenizer, [example for example in examples if not example.is_messages]))
    talks = iter(_conversations(tokenizer, [example for example in examples if example.is_messages], turns))
    return [next(talks) if example.is_messages else _of_text(example, next(texts)) for example in examples]


def _of_text(example: Example, encoded: Encoded | BadRow) -> Encoded | BadRow:
    if isinstance(encoded, BadRow):
        return encoded
    alone = example.prompt is None and not example.prompt_ids
    places = np.arange(len(encoded.ids[0]))
    return _with_targets(encoded.ids[0], places >= (0 if alone else encoded.answer_start[0]), encoded.notes, encoded)


def _with_targets(
    ids: np.ndarray, trained: np.ndarray, notes: tuple[Note, ...], encoded: Encoded | None = None
) -> Encoded | BadRow:
    trained[:1] = False
    if not trained.any():
        return BadRow(EMPTY, "no token to learn")
    double_bos = 0 if encoded is None else encoded.double_bos
    return Encoded((ids,), len(ids), (int(trained.argmax()),), double_bos, notes=notes, trained=trained)


@dataclass(frozen=True)
class _Talk:
    """A conversation as text: the characters in which its targets are, and 1 for each token that the template marks as
    generated (None: it marks nothing)."""

    text: str
    spans: tuple[tuple[int, int], ...]
    marks: tuple[int, ...] | None
    notes: tuple[Note, ...]


def _conversations(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], turns: Turns
) -> list[Encoded | BadRow]:
    talks: list[_Talk | BadRow] = []
    for example in examples:
        try:
            talks.append(_talk(tokenizer, example, turns))
        except BadRow as bad:
            talks.append(bad)
    texts = [talk.text for talk in talks if isinstance(talk, _Talk)]
    if not texts:
        return [talk for talk in talks if isinstance(talk, BadRow)]
    made = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    tokens = iter(zip(made["input_ids"], made["offset_mapping"], strict=True))
    return [talk if isinstance(talk, BadRow) else _encoded(talk, *next(tokens)) for talk in talks]


def _encoded(talk: _Talk, ids: list[int], offsets: list[tuple[int, int]]) -> Encoded | BadRow:
    trained = _inside(np.array(offsets, dtype=np.int64).reshape(-1, 2), talk.spans)
    if talk.marks is not None:
        trained &= np.array(talk.marks, dtype=np.bool_)
    return _with_targets(np.array(ids, dtype=np.int32), trained, talk.notes)


def _inside(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [L]: which tokens share a character with one of the spans. offsets: [L, 2], where each begins and ends."""
    begins, ends = offsets.T
    # Byte-level tokenizers leave spaces out of a token's offsets: of one that is nothing else they are empty.
    before = np.concatenate(([0], np.maximum.accumulate(ends)))[:-1]
    begins = np.where(begins < ends, begins, before)
    found = np.zeros(len(offsets), dtype=np.bool_)
    for begin, end in spans:
        found |= (ends > begin) & (begins < end)
    return found


def _talk(tokenizer: PreTrainedTokenizerBase, example: Example, turns: Turns) -> _Talk:
    """The text of an example, and where its targets are.

    Raises:
        BadRow: the template refuses the turns, or where the last answer begins cannot be known.
        UserError: as `encode_demonstrations`.
    """
    draft, prompt = write(tokenizer, example), len(example.prompt or ())
    conversation, (text,) = example.conversation(example.responses[0]), draft.texts
    notes = [*example.notes, *draft.notes]
    places = [place for place in range(prompt, len(conversation)) if not asks(conversation[place])]
    places = places[-1:] if turns == "last" else places
    if not places[0]:
        notes.append(Note(ANSWER_FIRST, repr(str(conversation[0].get("content"))[:40])))
        places = places[1:]
    marks = None
    if marks_answers(tokenizer):
        given = example.template_kwargs
        marks = tuple(marked_tokens(tokenizer, conversation, tools=example.tools, arguments=given))
    cuts = _Cuts(tokenizer, example, conversation, text)
    if marks is None:
        spans = tuple((cuts.begin(place, notes), cuts.end(place)) for place in places)
    else:  # they need no cuts, but where turns are left out
        every = turns == "all" and not prompt
        spans = ((0 if every else cuts.begin(places[0], notes), len(text)),)
    return _Talk(text, spans, marks, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Cuts:
    """Where turns are in the text of a conversation: by what the template makes of the conversation cut there."""

    tokenizer: PreTrainedTokenizerBase
    example: Example
    conversation: list[Message]
    text: str

    def begin(self, place: int, notes: list[Note]) -> int:
        """Where the answer of a turn begins, behind its header."""
        before = self._render(place, is_prompt=True)
        if self.text.startswith(before):
            return len(before)
        cut = self._render(place)
        self._check(place, cut)
        shared = os.path.commonprefix((before, self.text))
        notes.append(Note(OTHER_HEADER, shown(before[len(shared) :])))
        return max(len(shared), len(cut))

    def end(self, place: int) -> int:
        """Where a turn ends, with what closes it."""
        if place + 1 == len(self.conversation):
            return len(self.text)
        cut = self._render(place + 1)
        self._check(place, cut)
        return len(cut)

    def _render(self, count: int, *, is_prompt: bool = False) -> str:
        turns, tools, given = self.conversation[:count], self.example.tools, self.example.template_kwargs
        return render(self.tokenizer, turns, is_prompt=is_prompt, tools=tools, arguments=given)

    def _check(self, place: int, cut: str) -> None:
        """Refuse a template that renders the turns before a cut in another way once others follow."""
        if self.text.startswith(cut):
            return
        shared = len(os.path.commonprefix((cut, self.text)))
        rewritten = f"{shown(cut[shared : shared + 40])} becomes {shown(self.text[shared : shared + 40])}"
        if place + 1 == len(self.conversation):
            raise BadRow(TEMPLATE_ERROR, f"the chat template rewrites the turns before the last answer: {rewritten}")
        raise UserError(
            f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'} rewrites earlier turns once others "
            f"follow ({rewritten}): which tokens are an earlier answer's cannot be known; learn the last turn alone "
            "(sft.turns last, --demonstrations last), or give another template (data.chat_template)"
        )
