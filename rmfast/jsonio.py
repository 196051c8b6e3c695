"""JSON as rmfast writes and reads it: what is not a finite number is null on disk and nan in memory."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

T = TypeVar("T")

Real = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number of a dataclass for `from_json`: null is nan."""


def finite_or_null(value: Any) -> Any:
    """The value for JSON: what is not a finite number becomes null, at any depth of dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as dicts and lists, its fields in their order and by their aliases; nan stays nan."""
    return TypeAdapter(type(value)).dump_python(value, by_alias=True)


def from_json(kind: type[T], value: Any) -> T:
    """A dataclass from what `to_json` made of it; keys that it does not have are passed over.

    Raises:
        ValueError: a key is missing or of another type; the message names it.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def spliced(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A mapping in which the mappings under those keys replace them, in their place; null leaves nothing."""
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= (inner or {}) if key in keys else {key: inner}
    return out


def json_line(value: Any) -> str:
    """One line; what JSON does not know (dates, bytes) as text, what is not a finite number as null."""
    try:
        line = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # by way of text, as a row may be nested as deep as text is read
        value = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        line = json.dumps(value, ensure_ascii=False)
    # Half of a surrogate pair has no UTF-8: that row's text is escaped.
    return line if line.isascii() or _encodes(line) else json.dumps(value, default=str)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
