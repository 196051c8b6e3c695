"""Regular expressions by which byte-level tokenizers split texts before they merge bytes, beside GPT-2's."""

_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
SPLITS = {
    "llama3": rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}[\r\n]*|{_SPACES}",
    "qwen2": rf"{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}[\r\n]*|{_SPACES}",
    "tekken": rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_REST}[\r\n/]*|{_SPACES}",
    "gpt-4o": rf"{_CASED[0]}{_ENDS}?|{_CASED[1]}{_ENDS}?|\p{{N}}{{1,3}}|{_REST}[\r\n/]*|{_SPACES}",
}
"""Regular expressions by the names of those that split by them."""
