"""Where a text hands over to whoever replies. The rules are ours."""

import re


def _speaker(names: str) -> str:
    """A line that begins with one of the names, marked by a colon."""
    return rf"^[ \t#*\[(]*(?:{names})[ \t*\])]*:"


_TURNS = (
    r"<\|(?:im_start|start_header_id)\|>\s*assistant(?:<\|end_header_id\|>)?|<\|assistant\|>|\[/INST\]|"
    r"<start_of_turn>model|" + _speaker("assistant|ai|bot|chatbot|agent|model|gpt"),
    _speaker("response|output|completion|reply|tl;?dr"),
    _speaker("answer|a|summary"),
)
TURNS = tuple(re.compile(turn, re.IGNORECASE | re.MULTILINE) for turn in _TURNS)
"""Turn markers. Names that also stand inside replies count only without the others."""


_ASKER = re.compile(
    r"\s*(?:<s>\s*)?(?:<\|(?:im_start|start_header_id)\|>\s*(?:user|system)|<\|(?:user|system)\|>|\[INST\]|"
    r"<start_of_turn>user|(?:human|user)\s*:)",
    re.IGNORECASE,
)


def begins_dialogue(text: str) -> bool:
    """Whether a text begins with somebody's turn who asks, and somebody replies in it."""
    return _ASKER.match(text) is not None and has_turn(text)


def has_turn(text: str) -> bool:
    """Whether a text holds a turn marker."""
    return any(turn.search(text) for turn in TURNS)


def ends_in_turn(text: str) -> bool:
    """Whether nothing but white space follows a text's last turn marker."""
    text = text.rstrip()
    return any(found.end() == len(text) for turn in TURNS for found in turn.finditer(text))
