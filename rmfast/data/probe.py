"""Built-in conversations, for what is to be known of a chat template before or without any data."""

from transformers import PreTrainedTokenizerBase

from rmfast.data.example import BadRow, Example, Message
from rmfast.data.tokenise import Encoded, encode

_SYSTEM: Message = {"role": "system", "content": "You know the capitals of the world."}
_ASK: Message = {"role": "user", "content": "What is the capital of France?"}
_ANSWERS = ("Paris.", "Ask a map.")
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOLS = [{"type": "function", "function": {"name": "find", "description": "Find a city.", "parameters": _CITY}}]
_THOUGHT: list[Message] = [{"role": "assistant", "reasoning_content": "I know it.", "content": _ANSWERS[0]}]

PLAIN = Example([_ASK], _ANSWERS)
PROBES = {
    "tools": Example([_ASK], _ANSWERS, tools=_TOOLS),
    "a system turn": Example([_SYSTEM, _ASK], _ANSWERS),
    "a system turn and tools": Example([_SYSTEM, _ASK], _ANSWERS, tools=_TOOLS),
    "reasoning": Example([_ASK], (_THOUGHT,)),
}
"""Conversations by what they have and the plain one has not."""


def readable(tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The conversations that the chat template takes; none without a template.

    Raises:
        UserError: the template is no valid jinja.
    """
    if not tokenizer.chat_template:
        return []
    examples = [PLAIN, *PROBES.values()]
    return [e for e, made in zip(examples, encode(tokenizer, examples), strict=True) if isinstance(made, Encoded)]


def taken_for_granted(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A line on what the chat template cannot do without, where it fails on a plain question and its answer.

    Raises:
        UserError: the template is no valid jinja.
    """
    if not tokenizer.chat_template:
        return None
    plain, *others = encode(tokenizer, [PLAIN, *PROBES.values()])
    if not isinstance(plain, BadRow):
        return None
    taken = (name for name, made in zip(PROBES, others, strict=True) if isinstance(made, Encoded))
    what = next(taken, "something that rmfast's built-in conversations do not have")
    return f"the chat template takes {what} for granted: {plain.detail}"
