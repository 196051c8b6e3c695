"""Examples -> token ids: what is tokenised, with which special tokens, and what a group's responses share.

Strings: prompt and response are tokenised as one text, because tokens may merge where they meet; the tokenizer adds its
special tokens, and eos follows where the text does not end in it. Messages: the chat template is rendered over prompt
and answer, and nothing is added, which is what `apply_chat_template(tokenize=True)` gives. Ready ids stay as they are.

A prompt without responses is what an answer is to follow: a string without an eos that the tokenizer appends by itself;
messages with the template's generation prompt.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.data.beside import compare_texts
from rmfast.data.example import (
    EMPTY,
    IDENTICAL,
    TOO_FEW,
    WRONG_TYPE,
    BadRow,
    Example,
    Message,
    Response,
    check_unicode,
)
from rmfast.data.notes import Note
from rmfast.data.omissions import check_unknown_roles, omissions, shared_turns, without_tools
from rmfast.data.pieces import adds_nothing, text_ids
from rmfast.data.template import render
from rmfast.errors import shown

Ids = np.ndarray

SAME_BY_TEMPLATE = "only the chat template makes responses the same"
SAME_BY_TOKENIZER = "only the tokenizer makes responses the same"


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of one example.

    Attributes:
        ids: one int32 array per response: the whole sequence, prompt included.
        prefix: length of the longest token prefix common to all of them (the whole sequence where N = 1).
        answer_start: per response, how many of its leading tokens it shares with the tokenised prompt alone (with the
            template's assistant header, without an eos that the tokenizer appends). Without a separate prompt it is the
            common prefix.
        double_bos: sequences from which a second bos was taken.
        merged: samples that were the same as an earlier one (see `distinct_samples`).
        notes: the example's, and what its tokenisation adds to them.
        prompt: where N = 0, the prompt's ids, int32, which are the prefix; else None.
        trained: of a demonstration, which of its tokens are targets, bool [length]; never the first, which nothing
            predicts. Else None.
    """

    ids: tuple[Ids, ...]
    prefix: int
    answer_start: tuple[int, ...]
    double_bos: int = 0
    merged: int = 0
    notes: tuple[Note, ...] = ()
    prompt: Ids | None = None
    trained: np.ndarray | None = None

    @property
    def sequences(self) -> tuple[Ids, ...]:
        """`ids`, or the prompt alone where there is no response."""
        return self.ids if self.prompt is None else (self.prompt,)


_Way = Literal["rendered", "plain", "open"]
"""How a text is tokenised: as a template wrote it; with special tokens; so that an answer may follow."""


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded | BadRow]:
    """Tokenise a batch of examples with one call of the tokenizer per way to do it.

    Returns:
        One item per example, in order: its ids, or why it has none (the template refuses its turns, a text is not
        valid Unicode, an id is not the tokenizer's).

    Raises:
        UserError: messages need a chat template and there is none, or it is not valid.
    """
    texts: dict[_Way, dict[str, None]] = {"rendered": {}, "plain": {}, "open": {}}  # a dict keeps each text once
    drafts: list[Draft | BadRow] = []
    for example in examples:
        try:
            draft = write(tokenizer, example)
        except BadRow as bad:
            drafts.append(bad)
            continue
        texts[draft.way].update(dict.fromkeys(draft.all_texts))
        drafts.append(draft)
    appends_eos = cache(partial(_appends_eos, tokenizer))
    ids = {way: _tokenise(tokenizer, list(keys), way, appends_eos) for way, keys in texts.items()}
    return [
        draft if isinstance(draft, BadRow) else _assemble(tokenizer, draft, ids[draft.way], appends_eos)
        for draft in drafts
    ]


def distinct_samples(encoded: Encoded, k: int) -> Encoded | BadRow:
    """The first k different sequences of an example with at least k, or why it has none; at least two must differ."""
    count = len(encoded.ids)
    if count < k:
        return BadRow(TOO_FEW, f"{count} responses, and {k} are to be taken")
    first = {ids.tobytes(): place for place, ids in reversed(list(enumerate(encoded.ids)))}
    places = sorted(first.values())
    if len(places) == 1:
        return BadRow(IDENTICAL, f"all {count} responses are the same")
    kept = places[:k]
    ids = tuple(encoded.ids[place] for place in kept)
    prefix = min(common_prefix(ids[0], other) for other in ids)
    starts = tuple(encoded.answer_start[place] for place in kept)
    return Encoded(ids, prefix, starts, encoded.double_bos, count - len(places), encoded.notes)


def common_prefix(a: Ids, b: Ids) -> int:
    """Number of leading tokens that two sequences have in common."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclass(frozen=True, slots=True)
class Draft:
    """The texts of an example: of each response with the prompt (none for ready ids), and of the prompt alone.

    Where there is no response, the prompt is the one text.
    """

    example: Example
    texts: tuple[str, ...] = ()
    prompt: str | None = None
    notes: tuple[Note, ...] = ()

    @property
    def all_texts(self) -> tuple[str, ...]:
        return self.texts if self.prompt is None else (*self.texts, self.prompt)

    @property
    def way(self) -> _Way:
        if self.example.is_messages:
            return "rendered"
        return "plain" if self.example.responses else "open"


def write(tokenizer: PreTrainedTokenizerBase, example: Example) -> Draft:
    """The texts of an example that are to be tokenised.

    Raises:
        BadRow, UserError: as `encode`.
    """
    if example.is_messages:
        draft = _rendered(tokenizer, example)
    elif example.is_text:
        prompt = cast(str | None, example.prompt)
        whole = tuple((prompt or "") + cast(str, response) for response in example.responses)
        draft = Draft(example, whole, prompt) if whole else Draft(example, (cast(str, prompt),))
    else:
        draft = _ready(tokenizer, example)
    for text in draft.all_texts:
        check_unicode(text)
    return draft


def _ready(tokenizer: PreTrainedTokenizerBase, example: Example) -> Draft:
    """Ids that are there already. Raises BadRow where they are not the tokenizer's, or not the texts' beside them."""
    vocabulary, sequences = len(tokenizer), cast(tuple[list[int], ...], example.contents)
    if any(ids and not 0 <= min(ids) <= max(ids) < vocabulary for ids in sequences):
        raise BadRow(WRONG_TYPE, f"a token id outside the tokenizer's vocabulary of {vocabulary}")
    return Draft(example, notes=compare_texts(tokenizer, example) if example.texts else ())


def _rendered(tokenizer: PreTrainedTokenizerBase, example: Example) -> Draft:
    """The chat template's texts, and notes on what they lack."""
    write = partial(render, tokenizer, tools=example.tools, arguments=example.template_kwargs)
    alone = not example.responses
    conversations = [example.conversation(answer) for answer in example.responses or ([],)]
    texts = tuple(write(turns, is_prompt=alone) for turns in conversations)
    for turns in conversations:
        check_unknown_roles(turns, partial(write, is_prompt=alone))
    count, prompt = len(example.prompt or ()), None
    if alone:
        prompt = texts[0]
    elif example.prompt:
        with suppress(BadRow):  # a template may refuse a prompt that stands alone: then it counts as implicit
            prompt = write(example.conversation([]), is_prompt=True)
    else:
        count = shared_turns([turns[:-1] for turns in conversations])
    notes = omissions(conversations, count, texts, prompt)
    if example.tools:
        bare = partial(write, conversations[0], is_prompt=alone, tools=None)
        notes += without_tools(example.tools, texts[0], bare)
    return Draft(example, texts, prompt, notes)


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], way: _Way, appends_eos: Callable[[], bool]
) -> dict[str, Ids]:
    if not texts:
        return {}
    if way == "rendered" or adds_nothing(tokenizer):
        return text_ids(tokenizer, texts)
    lists = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    if way == "open" and appends_eos():
        lists = [ids[:-1] for ids in lists]
    return {text: np.asarray(ids, dtype=np.int32) for text, ids in zip(texts, lists, strict=True)}


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer ends every text in eos by itself. Not told by an empty text: its bos may be the same."""
    return bool(tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id])


def _assemble(
    tokenizer: PreTrainedTokenizerBase, draft: Draft, ids_of: dict[str, Ids], appends_eos: Callable[[], bool]
) -> Encoded | BadRow:
    example = draft.example
    is_text = example.is_text
    prompt = None if draft.prompt is None else ids_of[draft.prompt]
    if draft.way == "plain" and prompt is not None and _ends_in(prompt, tokenizer.eos_token_id) and appends_eos():
        prompt = prompt[:-1]  # or an empty response, which ends in the same eos, would have no token
    if draft.texts:
        sequences = [ids_of[text] for text in draft.texts]
    else:
        sequences = [np.array(ids, dtype=np.int32) for ids in example.contents]
        prompt = sequences[0][: example.prompt_ids] if example.prompt_ids else None
    double_bos = 0
    if is_text:
        double_bos = sum(_has_double_bos(ids, tokenizer.bos_token_id) for ids in sequences)
        # Without a bos that the tokenizer adds, both stand in the text and stay.
        if double_bos and tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
            double_bos = 0
    if double_bos:
        sequences = [_single_bos(ids, tokenizer.bos_token_id) for ids in sequences]
        prompt = None if prompt is None else _single_bos(prompt, tokenizer.bos_token_id)
    if not example.responses:
        return _prompt_alone(sequences[0], double_bos, (*example.notes, *draft.notes))
    if is_text:
        sequences = [_append_eos(ids, tokenizer.eos_token_id) for ids in sequences]
    if not all(len(ids) for ids in sequences):
        return BadRow(EMPTY, "a response has no tokens")
    prefix = min(common_prefix(sequences[0], ids) for ids in sequences)
    starts = tuple(prefix if prompt is None else common_prefix(prompt, ids) for ids in sequences)
    notes = (*example.notes, *draft.notes, *_same_tokens(example, sequences))
    return Encoded(tuple(sequences), prefix, starts, double_bos, notes=notes)


def _prompt_alone(ids: Ids, double_bos: int, notes: tuple[Note, ...]) -> Encoded | BadRow:
    if not len(ids):
        return BadRow(EMPTY, "the prompt has no tokens")
    return Encoded((), len(ids), (), double_bos, notes=notes, prompt=ids)


def _same_tokens(example: Example, sequences: Sequence[Ids]) -> tuple[Note, ...]:
    """Whether responses that differ have become the same."""
    first: dict[bytes, Response] = {}
    for response, ids in zip(example.responses, sequences, strict=True):
        other = first.setdefault(ids.tobytes(), response)
        if other != response:
            kind = SAME_BY_TEMPLATE if example.is_messages else SAME_BY_TOKENIZER
            return (Note(kind, f"{_said(other)} and {_said(response)}"),)
    return ()


def _said(response: Response) -> str:
    """A response's text for people; of messages the last one's."""
    return shown(response if isinstance(response, str) else cast(Message, response[-1]).get("content") or response)


def _has_double_bos(ids: Ids, bos: int | None) -> bool:
    return bos is not None and len(ids) > 1 and bool(ids[0] == ids[1] == bos)


def _single_bos(ids: Ids, bos: int | None) -> Ids:
    """`ids` with one bos at most: a text may begin with the bos that the tokenizer adds too."""
    while _has_double_bos(ids, bos):
        ids = ids[1:]
    return ids


def _append_eos(ids: Ids, eos: Any) -> Ids:
    return ids if _ends_in(ids, eos) else np.append(ids, np.int32(eos))


def _ends_in(ids: Ids, token: int | None) -> bool:
    return bool(len(ids) and ids[-1] == token)
