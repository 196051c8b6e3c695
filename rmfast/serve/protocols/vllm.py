"""vLLM's /classify and /pooling for a reward model: inputs that stand as they are, or one conversation.

Source: vLLM, vllm/entrypoints/pooling (base, classify and pooling: protocol.py, serving.py), read in 2026-12.
"""

import math
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from rmfast.data.example import Example
from rmfast.data.row_kinds import PROMPTS
from rmfast.errors import shown
from rmfast.serve.asked import Asked, Scored, Served, Whole, conversation, row
from rmfast.serve.refusal import Refused

AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "truncate_prompt_tokens": (None,),
    "padding": (None, "do_not_pad"),
    "chat_template": (None,),
    "continue_final_message": (None, False),
    "mm_processor_kwargs": (None,),
    "dimensions": (None,),
    "encoding_format": (None, "float"),
    "task": (None, "classify"),
}
"""What would change an answer and is not done here: only these values pass. Other keys change no score."""


def classify(data: Mapping[str, Any], served: Served) -> Asked:
    """`{"input"}` or `{"messages"}` to `{"data": [{"index", "label", "probs", "num_classes"}], ...}`.

    `probs` holds the reward; its sigmoid where `use_activation` is true, or is not given and config.json does not say
    that the model is a regression, as vLLM does.
    """
    inputs, activate = _inputs(data, served)

    def item(index: int, reward: float) -> dict[str, Any]:
        return {"index": index, "label": served.label, "probs": [reward], "num_classes": 1}

    return Asked(inputs, partial(_answer, kind="classify", served=served, item=item, activate=activate))


def pooling(data: Mapping[str, Any], served: Served) -> Asked:
    """As `classify`, to `{"data": [{"index", "object": "pooling", "data": [reward]}], ...}`."""
    inputs, activate = _inputs(data, served)

    def item(index: int, reward: float) -> dict[str, Any]:
        return {"index": index, "object": "pooling", "data": [reward]}

    return Asked(inputs, partial(_answer, kind="pool", served=served, item=item, activate=activate))


def _inputs(data: Mapping[str, Any], served: Served) -> tuple[list[Example | Whole], bool]:
    """What is scored, and whether its sigmoid is asked for."""
    served.check_name(data)
    for key, values in AS_IT_IS.items():
        if data.get(key) not in values:
            raise Refused(422, f"`{key}` {shown(data[key])} is not done here; leave it out")
    activate = data.get("use_activation", data.get("activation"))  # the second is vLLM's name before 0.11.2
    if activate is None:
        activate = served.activated
    if not isinstance(activate, bool):
        raise Refused(422, f"`use_activation` is not true or false but {shown(activate)}")
    if "messages" in data:
        return [_messages(data)], activate
    special = data.get("add_special_tokens", True)
    if not isinstance(special, bool):
        raise Refused(422, f"`add_special_tokens` is not true or false but {shown(special)}")
    given = data.get("input")
    many: list[Any] = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    for number, one in enumerate(many):
        if not isinstance(one, str) and not _is_ids(one):
            raise Refused(422, f"`input` {number} is neither text nor a list of token ids but {shown(one)}")
    return [Whole(one, special) for one in many], activate


def _messages(data: Mapping[str, Any]) -> Example:
    if data.get("add_special_tokens"):
        raise Refused(422, "`add_special_tokens` over `messages`, whose template writes them, is not done here")
    beside = {"chat_template_kwargs": data["chat_template_kwargs"]} if data.get("chat_template_kwargs") else {}
    if data.get("add_generation_prompt"):
        return row({"prompt": data["messages"]} | beside, "`messages`", PROMPTS)
    return conversation(data["messages"], "`messages`", beside)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _answer(scored: Scored, *, kind: str, served: Served, item: Any, activate: bool) -> dict[str, Any]:
    rewards = [float(reward) for of_row in scored.rewards for reward in of_row]
    if activate:
        rewards = [_sigmoid(reward) for reward in rewards]
    tokens = sum(scored.tokens)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": served.names[0],
        "data": [item(index, reward) for index, reward in enumerate(rewards)],
        "usage": usage,
    }


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
