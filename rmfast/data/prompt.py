"""Which rows are of one prompt: a key for each row, made of its columns before anything is tokenised.

Tokens do not tell: the last one of a prompt may merge with the reply, and where the responses hold the prompt, their
common tokens reach into the replies as far as these begin alike. Whoever keeps rows of one prompt together (folds)
goes by the keys. The rules for prompts that have no column are ours.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import cast

import numpy as np

from rmfast.data.example import Example, Message
from rmfast.data.omissions import shared_turns
from rmfast.data.parts import plain
from rmfast.data.tokenise import common_prefix
from rmfast.data.turns import TURNS


def prompt_key(example: Example) -> tuple[int, bool]:
    """A number below 2^64 that rows of one prompt share, and whether the prompt was guessed.

    The prompt is the prompt column's text or messages, or the ready ids in front. Without one, all turns but the last
    that the responses' messages share; the responses' common text up to and including the last turn marker in it (such
    as "Assistant:" at a line's beginning), or all of it; or their common ids. Responses that share nothing
    are one prompt by themselves, in any order. White space at the ends of a text counts for nothing; nor do tools.
    """
    if example.is_messages:
        prompt, guessed = _of_messages(example)
    elif example.is_text:
        prompt, guessed = _of_text(example)
    else:
        prompt, guessed = _of_ids(example)
    prompt = prompt or repr(sorted(map(repr, example.responses)))
    digest = hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little"), guessed


def common_turns(conversations: Sequence[Sequence[Message]]) -> list[Message]:
    """The turns with which all conversations begin; white space at the ends of their texts counts for nothing."""
    return list(conversations[0][: shared_turns([[plain(turn) for turn in turns] for turns in conversations])])


def common_text(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    ends = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in (min(texts), max(texts))]
    return min(texts)[: common_prefix(*ends)]


def up_to_turn(text: str) -> str | None:
    """A text up to and including its last turn marker (such as "Assistant:" at a line's beginning); None without."""
    for turn in TURNS:
        cuts = [found.end() for found in turn.finditer(text) if text[: found.start()].strip()]
        if cuts:
            return text[: cuts[-1]]
    return None


def _of_messages(example: Example) -> tuple[str, bool]:
    turns, guessed = cast(list[Message] | None, example.prompt) or [], False
    if not turns:
        before = [example.conversation(response)[:-1] for response in example.responses]
        turns = common_turns(before)
        guessed = any(len(turns_before) > len(turns) for turns_before in before)
        if not any(turn.get("role") == "user" for turn in turns):  # a system prompt alone is everybody's
            return "", True
    turns = [plain(turn) for turn in turns]
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:  # the same prompt as text
        return str(turns[0]["content"]), guessed
    return json.dumps(turns, sort_keys=True, default=str), guessed


def _of_text(example: Example) -> tuple[str, bool]:
    prompt = cast(str | None, example.prompt)
    if prompt and prompt.strip():
        return prompt.strip(), False
    shared = common_text(cast(tuple[str, ...], example.responses))
    return (up_to_turn(shared) or shared).strip(), True


def _of_ids(example: Example) -> tuple[str, bool]:
    if not example.responses:
        return repr(example.prompt), False
    ids = [np.array(response, dtype=np.int64) for response in cast(tuple[list[int], ...], example.responses)]
    count = example.prompt_ids or min(common_prefix(ids[0], response) for response in ids)
    # One token in common is a bos, which is everybody's.
    return repr(ids[0][:count].tolist()) if count > 1 or example.prompt_ids else "", not example.prompt_ids
