"""Rendered texts -> token ids, each piece between two special tokens tokenised once: a prompt's answers share most.

A fast tokenizer looks for its added tokens before all else, and what it does to the text between two of them knows
nothing of the rest, but where the text begins. So a text that is cut in front of special tokens has the ids of its
pieces, one after another, if no match of an added token can reach over a cut. Which tokens allow that is told by what
the tokenizer says of them (`_allows_cut`) and checked on texts; a tokenizer without such tokens gets whole texts.
"""

import re
import string
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

Ids = np.ndarray

_MARKS = frozenset(string.punctuation) - {"_"}
"""First characters of tokens that no neighbour takes for white space or for a part of a word."""
_FILLERS = ("", "a", " a", "a ", "  A\u00e9 b. ", "\n", "\n\na\n", "user\n", "\u4f60\u597d", "1 2", "<", "|>", "\u2581a")
"""What stands between special tokens where cuts are checked."""
_EMPTY: Ids = np.empty(0, np.int32)

_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[Any, ...], re.Pattern[str] | None]]
_known = WeakKeyDictionary()  # by tokenizer: what a pattern was made of, and the pattern


def rendered_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, Ids]:
    """Texts and their token ids, int32 [L]: what `tokenizer(text, add_special_tokens=False)` gives."""
    cuts = cuts_of(tokenizer)
    if cuts is None:
        return dict(zip(texts, map(_array, _whole(tokenizer, texts)), strict=True))
    pieces = [cut(text, cuts) for text in texts]
    known = _ids_of(tokenizer, dict.fromkeys(piece for text in pieces for piece in text))
    return {text: _joined([known[piece] for piece in parts]) for text, parts in zip(texts, pieces, strict=True)}


def cut(text: str, cuts: re.Pattern[str]) -> list[str]:
    """A text's pieces; all but the first begin with a special token."""
    parts = cuts.split(text)
    pieces = [token + behind for token, behind in zip(parts[1::2], parts[2::2], strict=True)]
    return [parts[0], *pieces] if parts[0] else pieces


def cuts_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """The special tokens in front of which rendered texts are cut, as one group; None where there are none.

    They are those that the chat template names, and the tokenizer's own, such as its eos.
    """
    made_of = (
        tokenizer.backend_tokenizer,
        len(tokenizer),
        tokenizer.split_special_tokens,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
    )
    known = _known.get(tokenizer)
    if known is None or known[0] != made_of:
        _known[tokenizer] = known = (made_of, _checked(tokenizer))
    return known[1]


def _checked(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """The pattern of `cuts_of`, where texts that hold its tokens have the same ids whole and in pieces."""
    if tokenizer.split_special_tokens:  # special tokens are then text like any other
        return None
    written = repr((tokenizer.chat_template, tokenizer.special_tokens_map))
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized]
    tokens = [t.content for t in added if t.special and t.content in written and _allows_cut(t, added)]
    if not tokens:
        return None
    cuts = re.compile(f"({'|'.join(map(re.escape, tokens))})")
    texts = [first + "".join(t + filler for t in tokens for filler in _FILLERS) for first in ("", " ", "a ")]
    pieces = [cut(text, cuts) for text in texts]
    known = _ids_of(tokenizer, dict.fromkeys(piece for text in pieces for piece in text))
    same = all(
        whole == _joined([known[piece] for piece in parts]).tolist()
        for whole, parts in zip(_whole(tokenizer, texts), pieces, strict=True)
    )
    return cuts if same else None


def _allows_cut(token: AddedToken, others: Sequence[AddedToken]) -> bool:
    """Whether any text may be cut in front of every occurrence of a token.

    The tokenizer takes the leftmost match of the tokens that it looks for in the text as it is (others are looked for in
    what the normalizer makes of the pieces), and of these the longest. So at an occurrence a match begins, unless
    another one reaches over that place.

    Args:
        others: all that are looked for in the text as it is, this one too.
    """
    text = token.content
    if not text or text[0] not in _MARKS:
        return False
    for other in others:
        if other.content.startswith(text) and (other.lstrip or other.single_word):
            return False
        at = other.content.find(text[0], 1)
        while at > 0:
            rest = other.content[at:]
            if rest.startswith(text) or text.startswith(rest):
                return False
            at = other.content.find(text[0], at + 1)
    return True


def _ids_of(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str]) -> dict[str, Ids]:
    """The ids of pieces; what transformers does beside calling its backend is of no use here."""
    backend, pieces = tokenizer.backend_tokenizer, list(pieces)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    made = backend.encode_batch_fast(pieces, add_special_tokens=False)  # without offsets
    return {piece: _array(encoding.ids) for piece, encoding in zip(pieces, made, strict=True)}


def _whole(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    made = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(made["input_ids"])


def _array(ids: list[int]) -> Ids:
    return np.array(ids, dtype=np.int32)


def _joined(parts: Sequence[Ids]) -> Ids:
    return np.concatenate(parts) if parts else _EMPTY
