"""The text of a sample, and whether it holds a stop string."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.rollout.draft import Draft, Request

SLACK = 16
"""Tokens beyond a stop string's bytes that are looked at, and of the prompt: some show no text."""


def answer_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] | np.ndarray, ids: np.ndarray) -> str:
    """What tokens add to the text of a prompt, special ones left out. A space that the tokenizer writes before a word,
    but not at a text's beginning, is part of it."""
    before = decode(tokenizer, np.asarray(prompt))
    whole = decode(tokenizer, np.concatenate((np.asarray(prompt), ids)))
    return whole[len(before) :] if whole.startswith(before) else decode(tokenizer, ids)


def draft_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] | np.ndarray, draft: Draft) -> str:
    """The text of a draft, without the eos that ended it."""
    return answer_text(tokenizer, prompt, draft.ids[:-1] if draft.stop_reason == "eos" else draft.ids)


def decode(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def cut(text: str, stop: Sequence[str]) -> str:
    """A text up to the first stop string in it."""
    return text[: min((place for s in stop if (place := text.find(s)) >= 0), default=len(text))]


class Stops(Protocol):
    """Ends samples by more than their last id."""

    def end(self, request: Request, number: int, ids: np.ndarray) -> bool:
        """Whether the last of a sample's tokens so far is to be its last.

        Args:
            number: of the sample among its prompt's. ids: int32 [L].
        """
        ...


class StopStrings:
    """Whether samples end in a stop string, or in the special token of that text, which texts leave out.

    A token at a time is looked at, so that only the last few tokens can hold a string that was not there before. Of the
    prompt too: its last few tokens say how the answer's first one is written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.tail = max(len(s.encode()) for s in stop) + SLACK
        added = tokenizer.added_tokens_decoder.items()
        self.special = {number for number, token in added if token.special and str(token) in self.stop}

    def end(self, request: Request, number: int, ids: np.ndarray) -> bool:
        """Whether the last token completes a stop string."""
        if int(ids[-1]) in self.special:
            return True
        if len(ids) <= self.tail:
            text = answer_text(self.tokenizer, request.ids[-SLACK:], ids)
        else:
            text = decode(self.tokenizer, ids[-self.tail :])
        return any(s in text for s in self.stop)
