"""What a chat template writes after an answer's end: a reward model that learnt from whole conversations reads it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

from rmfast.data.example import BadRow, Message
from rmfast.data.template import render

_ASKED: Message = {"role": "user", "content": "a"}
_ANSWERED: Message = {"role": "assistant", "content": "b"}


@dataclass(frozen=True)
class Tail:
    """Ids of an answer's header, the token that ends the answer, and ids of what follows it."""

    header: tuple[int, ...] = ()
    end: int | None = None
    after: tuple[int, ...] = ()

    def of(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, ...]:
        """What follows an answer to a prompt: nothing where it has not ended as the template ends answers, or where the
        prompt does not end in the header, as a text does not."""
        front, size = tuple(prompt), len(self.header)
        return self.after if size and front[-size:] == self.header and answer[-1] == self.end else ()


def answer_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token with which the chat template closes an answer; None where it has none.

    Raises:
        UserError: the template is no valid jinja.
    """
    if tokenizer.chat_template is None:
        return None
    try:
        prompt, whole = _rendered(tokenizer, _ASKED, is_prompt=True), _rendered(tokenizer, _ASKED, _ANSWERED)
    except BadRow:  # a template that asks for more than these turns
        return None
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    shared = len(commonprefix((prompt, whole)))
    return next((token for token in reversed(whole[shared:]) if token in special), None)


def _rendered(tokenizer: PreTrainedTokenizerBase, *turns: Message, is_prompt: bool = False) -> tuple[int, ...]:
    text = render(tokenizer, turns, is_prompt=is_prompt)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def template_tail(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> Tail:
    """The tail that a tokenizer's chat template writes.

    Args:
        ends: ids that end an answer.
    """
    if tokenizer.chat_template is None:
        return Tail()
    ids = partial(_rendered, tokenizer)
    try:
        before, prompt, whole = ids(_ASKED), ids(_ASKED, is_prompt=True), ids(_ASKED, _ANSWERED)
    except BadRow:  # a template that asks for more than these turns
        return Tail()
    last = max((place for place in range(len(before), len(whole)) if whole[place] in ends), default=None)
    if prompt[: len(before)] != before or last is None:
        return Tail()
    return Tail(prompt[len(before) :], whole[last], whole[last + 1 :])
