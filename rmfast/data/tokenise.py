"""Examples -> token ids: what is tokenised, with which special tokens, and what a group's responses share.

Strings: prompt and response are tokenised as one text, because tokens may merge where they meet; the tokenizer adds its
special tokens, and eos follows where the text does not end in it. Messages: the chat template is rendered over prompt
and answer, and nothing is added, which is what `apply_chat_template(tokenize=True)` gives. Ready ids stay as they are.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import EMPTY, IDENTICAL, NOT_UTF8, TOO_FEW, WRONG_ROLES, WRONG_TYPE, BadRow, Example, Message
from rmfast.data.notes import Note
from rmfast.errors import UserError

Ids = np.ndarray


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of one example.

    Attributes:
        ids: one int32 array per response: the whole sequence, prompt included.
        prefix: length of the longest token prefix common to all of them (the whole sequence where N = 1).
        answer_start: per response, how many of its leading tokens it shares with the tokenised prompt alone (the
            template's assistant header included). Without a separate prompt it is the common prefix.
        double_bos: sequences from which a second bos was taken.
        merged: samples that were the same as an earlier one (see `distinct_samples`).
        notes: the example's, and what its tokenisation adds to them.
    """

    ids: tuple[Ids, ...]
    prefix: int
    answer_start: tuple[int, ...]
    double_bos: int = 0
    merged: int = 0
    notes: tuple[Note, ...] = ()


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Encoded | BadRow]:
    """Tokenise a batch of examples with one call of the tokenizer per kind of text (plain, rendered).

    Returns:
        One item per example, in order: its ids, or why it has none (the template refuses its turns, a text is not
        valid Unicode, an id is not the tokenizer's).

    Raises:
        UserError: messages need a chat template and there is none, or it is not valid.
    """
    texts: dict[bool, dict[str, None]] = {True: {}, False: {}}  # by rendered or plain; a dict keeps each text once
    drafts: list[tuple[Example, list[str]] | BadRow] = []
    for example in examples:
        try:
            written = _texts(tokenizer, example)
        except BadRow as bad:
            drafts.append(bad)
            continue
        texts[example.is_messages].update(dict.fromkeys(written))
        drafts.append((example, written))
    ids = {rendered: _tokenise(tokenizer, list(keys), rendered) for rendered, keys in texts.items()}
    return [
        draft if isinstance(draft, BadRow) else _assemble(tokenizer, draft[0], draft[1], ids[draft[0].is_messages])
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


def _texts(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[str]:
    """The full text of each response, then the prompt's alone if there is a prompt. Nothing for ready ids."""
    if example.is_messages:
        texts = [_render(tokenizer, example, example.conversation(answer), False) for answer in example.responses]
        if example.prompt:
            with suppress(BadRow):  # a template may refuse a prompt that stands alone: then it counts as implicit
                texts.append(_render(tokenizer, example, example.conversation([]), True))
    elif isinstance(example.responses[0], str):
        prompt = cast(str | None, example.prompt)
        texts = [(prompt or "") + cast(str, response) for response in example.responses]
        if prompt is not None:
            texts.append(prompt)
    else:
        return []
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:  # a lone surrogate, which no tokenizer takes
                raise BadRow(NOT_UTF8, f"character {text[error.start]!r} is half of a surrogate pair") from None
    return texts


def _render(tokenizer: PreTrainedTokenizerBase, example: Example, messages: list[Message], is_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise UserError(
            "the data holds messages but the tokenizer has no chat template: "
            "give one (data.chat_template, --chat-template)"
        )
    arguments = example.template_kwargs | {"tokenize": False, "add_generation_prompt": is_prompt}
    try:
        return str(tokenizer.apply_chat_template(messages, tools=example.tools, **arguments))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template (data.chat_template) is not valid, line {error.lineno}: {error}") from None
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        KeyError,
        ArithmeticError,
    ) as error:  # whatever templates raise on odd turns
        raise BadRow(WRONG_ROLES, (str(error).splitlines() or [type(error).__name__])[0]) from None


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str], rendered: bool) -> dict[str, Ids]:
    if not texts:
        return {}
    lists = tokenizer(texts, add_special_tokens=not rendered, return_attention_mask=False, verbose=False)["input_ids"]
    return {text: np.asarray(ids, dtype=np.int32) for text, ids in zip(texts, lists, strict=True)}


def _assemble(
    tokenizer: PreTrainedTokenizerBase, example: Example, texts: list[str], ids_of: dict[str, Ids]
) -> Encoded | BadRow:
    count = len(example.responses)
    if texts:
        sequences, prompt = [ids_of[text] for text in texts[:count]], [ids_of[text] for text in texts[count:]]
    else:
        sequences, prompt = [np.asarray(ids, dtype=np.int64) for ids in example.responses], []
        if any((ids >= len(tokenizer)).any() for ids in sequences):
            return BadRow(WRONG_TYPE, f"a token id outside the tokenizer's vocabulary of {len(tokenizer)}")
        sequences = [ids.astype(np.int32) for ids in sequences]
    double_bos = 0
    if texts and not example.is_messages:
        double_bos = sum(_has_double_bos(ids, tokenizer.bos_token_id) for ids in sequences)
        # Without a bos of the tokenizer's own, both stand in the text and stay.
        if double_bos and tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id]:
            double_bos = 0
    if double_bos:
        sequences = [_single_bos(ids, tokenizer.bos_token_id) for ids in sequences]
        prompt = [_single_bos(ids, tokenizer.bos_token_id) for ids in prompt]
    if texts and not example.is_messages:
        sequences = [_append_eos(ids, tokenizer.eos_token_id) for ids in sequences]
    if not all(len(ids) for ids in sequences):
        return BadRow(EMPTY, "a response has no tokens")
    prefix = min(common_prefix(sequences[0], ids) for ids in sequences)
    starts = tuple(common_prefix(prompt[0], ids) if prompt else prefix for ids in sequences)
    return Encoded(tuple(sequences), prefix, starts, double_bos, notes=example.notes)


def _has_double_bos(ids: Ids, bos: int | None) -> bool:
    return bos is not None and len(ids) > 1 and bool(ids[0] == ids[1] == bos)


def _single_bos(ids: Ids, bos: int | None) -> Ids:
    """`ids` with one bos at most: a text may begin with the bos that the tokenizer adds too."""
    while _has_double_bos(ids, bos):
        ids = ids[1:]
    return ids


def _append_eos(ids: Ids, eos: Any) -> Ids:
    return ids if len(ids) and ids[-1] == eos else np.append(ids, np.int32(eos))
