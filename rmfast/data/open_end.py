"""Texts of answers that were cut: tokens as everywhere, but with nothing behind the answer that would end it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import WRONG_ROLES, BadRow, Example, Message
from rmfast.data.template import render
from rmfast.data.tokenise import encode

MARK = "\ue000\ue001"  # of Unicode's private use: no answer holds it, and no template takes it away
_ASKED: list[Message] = [{"role": "user", "content": "a"}]


def leaves_open(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether answers can be written by the tokenizer's chat template without what ends them."""
    try:
        _opened(tokenizer, Example(_ASKED, ()), "b")
    except BadRow:
        return False
    return True


def encode_open(tokenizer: PreTrainedTokenizerBase, prompt: Example, answer: str) -> np.ndarray | BadRow:
    """Token ids int32 [L] of a prompt with an answer that has not ended, or why there are none.

    Text: as one text with the tokenizer's special tokens, without the eos that `encode` appends. Messages: what the
    chat template writes up to the answer's last character.

    Args:
        prompt: without responses; text or messages.
    """
    if not prompt.is_messages:
        (found,) = encode(tokenizer, [replace(prompt, prompt=f"{prompt.prompt}{answer}")])
        return found if isinstance(found, BadRow) else found.sequences[0]
    try:
        text = _opened(tokenizer, prompt, answer)
    except BadRow as error:
        return error
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)


def _opened(tokenizer: PreTrainedTokenizerBase, prompt: Example, answer: str) -> str:
    """A conversation as the template writes it, up to the answer's end.

    Raises:
        BadRow: the template refuses it, or does not write the answer as it is.
    """
    turns = prompt.conversation(f"{answer}{MARK}")
    whole = render(tokenizer, turns, is_prompt=False, tools=prompt.tools, arguments=prompt.template_kwargs)
    before, *behind = whole.split(MARK)
    if len(behind) != 1:
        raise BadRow(WRONG_ROLES, "the chat template does not write an answer once and as it is")
    return before


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Example],
    answers: Sequence[Sequence[str]],
    cut: Sequence[Sequence[bool]],
) -> list[Example | BadRow]:
    """Each prompt with its answers as an example of ready ids: those that ended as `RewardModel.score` reads them,
    those that were cut as `encode_open` does.

    Args:
        prompts: without responses. answers: of each. cut: which of them have not ended.
    """
    ended = [
        replace(prompt, responses=tuple(text for text, is_cut in zip(*group, strict=True) if not is_cut))
        for prompt, *group in zip(prompts, answers, cut, strict=True)
    ]
    encoded = iter(encode(tokenizer, [example for example in ended if example.responses]))
    found: list[Example | BadRow] = []
    for prompt, texts, are_cut, example in zip(prompts, answers, cut, ended, strict=True):
        whole = next(encoded) if example.responses else None
        if isinstance(whole, BadRow):
            found.append(whole)
            continue
        closed = iter(() if whole is None else whole.ids)
        ids = [
            encode_open(tokenizer, prompt, text) if is_cut else next(closed)
            for text, is_cut in zip(texts, are_cut, strict=True)
        ]
        bad = [one for one in ids if isinstance(one, BadRow)]
        whole_ids = tuple(one.tolist() for one in ids if not isinstance(one, BadRow))
        found.append(bad[0] if bad else Example(None, whole_ids))
    return found
