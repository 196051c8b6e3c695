"""How a reward model reads: texts to tokens, and which texts are too long for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import BadRow, Example
from rmfast.data.store import TokenStore
from rmfast.data.tokenise import Encoded, encode

TOO_LONG = "too long"


@dataclass(frozen=True)
class Reader:
    """How a model reads: its tokenizer, and how many tokens it takes (None: any number), of which an answer that is to
    follow has `answer`."""

    tokenizer: PreTrainedTokenizerBase
    window: int | None = None
    answer: int = 0

    def read(self, examples: Sequence[Example]) -> list[Encoded | BadRow]:
        """The examples' tokens, or why the model cannot take them."""
        encoded = encode(self.tokenizer, examples)
        return [e if isinstance(e, BadRow) else too_long(e, self.window, self.answer) or e for e in encoded]


def too_long(encoded: Encoded, window: int | None, answer: int = 0) -> BadRow | None:
    """Why an example, and an answer of so many tokens, do not fit into a window, if they do not."""
    longest = max(map(len, encoded.sequences))
    if window is None or longest + answer <= window:
        return None
    return _too_long(longest, window, ", answer included" if answer else "")


def first_too_long(store: TokenStore, window: int | None) -> tuple[int, BadRow] | None:
    """The first group of a store that does not fit into a window of so many tokens, by its number from 0 on."""
    if window is None:
        return None
    lengths = store.longest()
    over = np.flatnonzero(lengths > window)
    return (int(over[0]), _too_long(int(lengths[over[0]]), window)) if len(over) else None


def _too_long(longest: int, window: int, included: str = "") -> BadRow:
    return BadRow(TOO_LONG, f"{longest:,} tokens, and the model takes {window:,}{included}")
