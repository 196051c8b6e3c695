"""Texts -> token ids, what texts share tokenised once: pieces between special tokens, and words.

A fast tokenizer looks for its added tokens before all else, and what it does to the text between two of them knows
nothing of the rest, but where the text begins. So a text that is cut in front of special tokens has the ids of its
pieces, one after another, if no match of an added token can reach over a cut. Which tokens allow that is told by what
the tokenizer says of them (`_allows_cut`). Within pieces, see `rmfast.data.words`. Both are checked on texts before
they are used, and a tokenizer that allows neither is given whole texts.
"""

import re
import string
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from rmfast.data.words import Words, may_cut, whole_ids

Ids = np.ndarray

_MARKS = frozenset(string.punctuation) - {"_"}
"""First characters of tokens that no neighbour takes for white space or for a part of a word."""
_FILLERS = (
    *("", "a", " a", "a ", "  A\u00e9 b. ", "\n", "\n\na\n", "1 2", "<", "|>", "\u4f60\u597d", "\u2581a", "\u0301"),
    " It's a word, and 12 others.  They\u2019re \n apart: x<y \t 3.5 A-b (c) e\u0301 \u0301 f?! ",
)  # fmt: skip
"""What stands between special tokens in the texts on which cuts are checked."""


@dataclass(frozen=True)
class _Cuts:
    """Where a tokenizer's texts may be cut: in front of the special tokens of a pattern, of one group; and of words."""

    backend: Tokenizer
    tokens: re.Pattern[str] | None
    words: Words | None

    def ids_of(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of texts, int32 [L] each."""
        parted = [[text] if self.tokens is None else pieces(text, self.tokens) for text in texts]
        distinct = list(dict.fromkeys(piece for parts in parted for piece in parts))
        if self.words is not None:
            known = self.words.ids_of(distinct)
        else:
            made = whole_ids(self.backend, distinct)
            known = {piece: array("i", ids) for piece, ids in zip(distinct, made, strict=True)}
        joined = (bytearray().join([known[piece] for piece in parts]) for parts in parted)
        return [np.frombuffer(ids, dtype=np.int32) for ids in joined]


_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[Any, ...], _Cuts | None]]
_known = WeakKeyDictionary()  # by tokenizer: what the cuts depend on, and the cuts


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, Ids]:
    """Texts and their token ids, int32 [L]: what `tokenizer(text, add_special_tokens=False)` gives."""
    cuts = _cuts_of(tokenizer)
    if cuts is not None:
        return dict(zip(texts, cuts.ids_of(texts), strict=True))
    return {text: np.array(ids, dtype=np.int32) for text, ids in zip(texts, _whole(tokenizer, texts), strict=True)}


def adds_nothing(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer adds no special tokens to a text by itself."""
    return bool(tokenizer.num_special_tokens_to_add(pair=False) == 0)


def pieces(text: str, tokens: re.Pattern[str]) -> list[str]:
    """A text's pieces; all but the first begin with one of the special tokens of a pattern of one group."""
    first, *parts = tokens.split(text)
    behind = [token + rest for token, rest in zip(parts[::2], parts[1::2], strict=True)]
    return [first, *behind] if first or not behind else behind


def _cuts_of(tokenizer: PreTrainedTokenizerBase) -> _Cuts | None:
    """Where texts may be cut; None where nowhere."""
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


def _checked(tokenizer: PreTrainedTokenizerBase) -> _Cuts | None:
    """The cuts that the tokenizer's rules allow, where texts that hold its tokens have the same ids whole and cut."""
    if tokenizer.split_special_tokens:  # special tokens are then text like any other
        return None
    tokens = _cut_tokens(tokenizer)
    texts = [first + "".join(t + filler for t in tokens or ("",) for filler in _FILLERS) for first in ("", " ", "a ")]
    whole = _whole(tokenizer, texts)
    cuts = _allowed(tokenizer, tokens)
    for less in (cuts, replace(cuts, words=None)):
        if (less.tokens or less.words) and [ids.tolist() for ids in less.ids_of(texts)] == whole:
            return less
    return None


def _allowed(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> _Cuts:
    """The cuts in front of special tokens, and of words if the tokenizer's rules allow it."""
    backend = tokenizer.backend_tokenizer
    pattern = re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None
    return _Cuts(backend, pattern, Words(backend) if may_cut(backend) else None)


def _cut_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens in front of which texts are cut: of those that the chat template names, and of the tokenizer's
    own (such as its eos), those that allow it."""
    written = repr((tokenizer.chat_template, tokenizer.special_tokens_map))
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.normalized]
    return [t.content for t in added if t.special and t.content in written and _allows_cut(t, added)]


def _allows_cut(token: AddedToken, others: Sequence[AddedToken]) -> bool:
    """Whether any text may be cut in front of every occurrence of a token.

    The tokenizer takes the leftmost match of the tokens that it looks for in the text as it is (others are looked for
    in what the normalizer makes of the pieces), and of these the longest. So at an occurrence a match begins, unless
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


def _whole(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    made = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(made["input_ids"])
