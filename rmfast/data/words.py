"""Token ids of texts from those of their words: a word is tokenised where it is first seen.

Byte-level tokenizers split a text by a regular expression before they merge bytes. In those that are known here a match
with anything but white space in it holds a space at its beginning alone, and nothing looks back, or on but for white
space. So a match ends in front of a space between two other characters, and what follows is matched as if the text
began there: the text may be cut, if no added token holds a space or takes one beside it. So does a match end behind a
lone line break between a visible character and a letter or digit; the line that names a role ends so. Composing
characters (NFC) never joins what is behind such a place to what is before it.
"""

import json
import re
from array import array
from collections.abc import Iterable
from itertools import chain
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

from rmfast.data.word_splits import SPLITS

_SPACE = re.compile(r" (?<=[!-~\w] )(?=[!-~\w])")
"""A space between characters that are white space to nobody, whatever their version of Unicode."""
_LINE = re.compile(r"(?<=[!-~\w]\n)(?=[A-Za-z0-9])")
_MOST = 100_000  # words that are kept
_LONGEST = 64  # characters of a word that is kept


class Words:
    """The ids of words that were met, for a tokenizer that may be asked for words (see `may_cut`)."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._first: dict[str, list[int]] = {}  # of words at the beginning of a text or a line
        self._spaced: dict[str, list[int]] = {}  # of words behind a space, without it

    def ids_of(self, texts: Iterable[str]) -> dict[str, "array[int]"]:
        """Texts and their ids (of 32 bits), without special tokens that a tokenizer adds."""
        parted = {text: _SPACE.split(text) for text in texts}
        lines = {first: _LINE.split(first) for first, *_ in parted.values()}
        first, spaced = self._first, self._spaced
        new_first = list({word: None for words in lines.values() for word in words if word not in first})
        new_spaced = list({word: None for _, *words in parted.values() for word in words if word not in spaced})
        made = whole_ids(self._backend, [*new_first, *(f" {word}" for word in new_spaced)])
        first.update(zip(new_first, made, strict=False))
        spaced.update(zip(new_spaced, made[len(new_first) :], strict=True))
        found = {}
        for text, (begin, *words) in parted.items():
            lists = chain(map(first.__getitem__, lines[begin]), map(spaced.__getitem__, words))
            found[text] = array("i", [*chain.from_iterable(lists)])
        _forget(first, new_first)
        _forget(spaced, new_spaced)
        return found


def _forget(known: dict[str, list[int]], new: list[str]) -> None:
    """Keep no long words, and none at all where there are too many."""
    for word in new:
        if len(word) > _LONGEST:
            del known[word]
    if len(known) > _MOST:
        known.clear()


def whole_ids(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    """What a tokenizer's backend makes of texts, without special tokens that it adds."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=False)]  # without offsets


def may_cut(backend: Tokenizer) -> bool:
    """Whether a tokenizer is one of those whose texts may be cut at spaces and line breaks (see above)."""
    if not isinstance(backend.model, BPE) or backend.model.dropout:
        return False
    for token in backend.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or " " in token.content or "\n" in token.content:
            return False
    if [step["type"] for step in _steps(backend.normalizer)] not in ([], ["NFC"]):
        return False
    steps = _steps(backend.pre_tokenizer)
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    before = [step for step in steps[:-1] if step["type"] != "Digits"]  # which splits at digits alone
    if steps[-1]["use_regex"]:  # GPT-2's
        return not before
    return len(before) == 1 and _is_known(before[0])


def _is_known(step: dict[str, Any]) -> bool:
    """Whether a step splits by a known regular expression and nothing else."""
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return False
    return step["pattern"].get("Regex") in SPLITS.values()


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, as a tokenizer's file has them."""
    found: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    if found is None:
        return []
    return [found] if found["type"] != "Sequence" else found.get("pretokenizers", found.get("normalizers", [found]))
