"""Rendering of chat templates, the one place where it is done, and what rows may not say to it.

transformers renders in a sandbox, to which bounds of size are added (see `rmfast.data.bounds`). What a template raises
is the row's fault, never the end of a command; a template that runs on is.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jinja2
from jinja2.defaults import DEFAULT_NAMESPACE
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from rmfast.data import bounds
from rmfast.data.clock import lines_in_front
from rmfast.data.example import WRONG_ROLES, BadRow, Message
from rmfast.errors import UserError, first_line

# What transformers compiles templates in, which it takes no other way.
setattr(chat_template_utils, "ImmutableSandboxedEnvironment", bounds.BoundedEnvironment)  # noqa: B010
Result = TypeVar("Result")

TEMPLATE_ERROR = "template error"
RESERVED = "reserved argument"

# An argument that transformers before 5.20 lacks: with each version the same rows are refused.
_OF_LATER = {"sanitize_control_tokens"}
_ARGUMENTS = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents", "kwargs"}
_TOKENS = PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
_NAMES = {*_TOKENS, "messages", "conversations", "strftime_now", "raise_exception", *DEFAULT_NAMESPACE}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
NOT_FOR_ROWS = frozenset(_ARGUMENTS | _OF_LATER | _NAMES)
"""Names that `chat_template_kwargs` must not set: how a template is called, and what it finds there beside the row."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    is_prompt: bool,
    tools: list[Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The text that the chat template makes of messages.

    Args:
        is_prompt: an answer is to follow, so that its header is added.
        tools, arguments: the row's, for the template.

    Raises:
        BadRow: the template refuses the messages or fails on them; an argument that is not for rows.
        UserError: there is no template, or it is no valid jinja.
    """
    if tools is None and not arguments and _is_plain(tokenizer, messages):
        return _guarded(tokenizer, lambda: _render_plain(tokenizer, messages, is_prompt))
    return str(_applied(tokenizer, messages, tools, arguments, tokenize=False, add_generation_prompt=is_prompt))


def marks_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template says what of a conversation the assistant generates ({% generation %})."""
    return _GENERATION.search(_COMMENT.sub("", tokenizer.chat_template or "")) is not None


def marked_tokens(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> list[int]:
    """1 for each token of a conversation that a template's marks say the assistant generates, else 0.

    Raises:
        BadRow, UserError: as `render`.
    """
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    return list(_applied(tokenizer, messages, tools, arguments, **options)["assistant_masks"])


def _applied(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: list[Any] | None,
    arguments: Mapping[str, Any] | None,
    **options: Any,
) -> Any:
    if arguments and tokenizer.chat_template and (names := sorted(NOT_FOR_ROWS & arguments.keys())):
        raise BadRow(RESERVED, f"`chat_template_kwargs` holds {names[0]!r}, which a row cannot set")
    more = {**(arguments or {}), **options}
    return _guarded(tokenizer, lambda: tokenizer.apply_chat_template(list(messages), tools=tools, **more))


def _is_plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    """Whether messages are of nothing but roles and texts, which transformers gives to a template as they are."""
    for turn in messages:
        if not (len(turn) == 2 and type(turn.get("role")) is str and type(turn.get("content")) is str):
            return False
    return bool(messages) and type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template


def _render_plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], is_prompt: bool) -> str:
    """What `apply_chat_template` gives, without its copies of messages and arguments."""
    template = chat_template_utils._compile_jinja_template(tokenizer.get_chat_template())
    given = tokenizer.special_tokens_map
    text: str = template.render(
        messages=list(messages), tools=None, documents=None, add_generation_prompt=is_prompt, **given
    )
    return text


def _guarded(tokenizer: PreTrainedTokenizerBase, run: Callable[[], Result]) -> Result:
    """What a call that renders gives, and its errors as this module's."""
    if tokenizer.chat_template is None:
        raise UserError(
            "the data holds messages but the tokenizer has no chat template: "
            "give one (data.chat_template, --chat-template)"
        )
    try:
        return bounds.in_time(run)
    except bounds.TookTooLong:
        raise UserError(
            f"the chat template (data.chat_template) runs for more than {bounds.SECONDS:g} s over one conversation: "
            "mend its loops, or give another template"
        ) from None
    except jinja2.TemplateSyntaxError as error:
        line = error.lineno - lines_in_front(tokenizer.chat_template)
        raise UserError(f"the chat template (data.chat_template) is not valid, line {line}: {error.message}") from None
    except Exception as error:  # expressions of a template raise whatever Python does
        text = first_line(error) if str(error) else ""
        if type(error) is jinja2.TemplateError:  # the template's refusal, by raise_exception
            raise BadRow(WRONG_ROLES, text) from None
        raise BadRow(TEMPLATE_ERROR, f"{type(error).__name__}: {text}") from None
