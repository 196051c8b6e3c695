"""JSON files -> rows, streamed: a row on each line, or one list of rows. A key that an object has twice is an error."""

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rmfast.data.example import NOT_JSON, NOT_OBJECT, NOT_UTF8, BadRow
from rmfast.data.unpack import chunks
from rmfast.errors import UserError

DOUBLED_KEY = "doubled key"

Rows = Iterator[tuple[int, dict[str, Any] | BadRow]]
"""1-based row, and its columns or why they cannot be read."""

_SPACE = b" \t\r\n"  # JSON's; text in a string may begin with other spaces of Unicode
_ANY_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[{])")
_ROW_COLUMNS = {"chosen", "rejected", "responses", "chosen_ids", "rejected_ids"}
_SHOWN = 40  # characters of a place that an error is about
_AWAITS_MORE = (b"{", b"[", b":", b'",')  # a row and a comma is one row, and a bad one
_TOKEN = re.compile(
    r"""[ \t\r\n,:]*(?:[\[\]{}]|"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[-+.\deE]*|true|false|null|NaN|-?Infinity)""", re.DOTALL
)


def json_rows(path: Path, may_be_list: bool) -> Rows:
    """Stream the rows of a file, unpacked where it is .gz or .zst, holding one block of it at a time.

    Args:
        may_be_list: whether a file that begins with [ is one list of rows; else it holds a row on each line.

    Raises:
        UserError: the file ends early, is damaged, or is one object rather than rows.
    """
    blocks = chunks(path)
    head = start = b""
    while (len(head) < len(codecs.BOM_UTF8) or not start) and (block := next(blocks, b"")):
        head += block
        start = head.removeprefix(codecs.BOM_UTF8).lstrip(_SPACE)
    blocks = itertools.chain([head.removeprefix(codecs.BOM_UTF8)], blocks)
    return _list_rows(_Text(path, blocks)) if may_be_list and start.startswith(b"[") else _line_rows(path, blocks)


def parse_json(text: str) -> Any:
    """The one JSON value that a text is.

    Raises:
        BadRow: it is none, or an object in it has a key twice.
    """
    try:
        value, end = _decode(text)
        if end == len(text) or not text[end:].strip(_SPACE.decode()):
            return value
        raise json.JSONDecodeError("something follows the value", text, end)
    except BadRow:
        raise
    except json.JSONDecodeError as error:
        raise BadRow(NOT_JSON, f"{error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        raise BadRow(NOT_JSON, str(error)) from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values. Of a key that is there twice, JSON's readers keep the last without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for place, name in enumerate(names) if name in names[:place])
        raise BadRow(DOUBLED_KEY, f"an object has {doubled!r} twice")
    return value


_decode = json.JSONDecoder(object_pairs_hook=_unique).raw_decode
_decode_any = json.JSONDecoder(parse_int=str).raw_decode  # Python makes no number of more than 4,300 digits


def _line_rows(path: Path, blocks: Iterator[bytes]) -> Rows:
    first, goes_on = True, False
    for number, line in enumerate(_lines(blocks), start=1):
        if line := line.strip(_SPACE):
            if goes_on:
                raise UserError(
                    f"{path} is JSON over several lines, and no list of rows: write each row on one line (.jsonl), "
                    "or all of them as one list (.json)"
                )
            row = _parse_line(line)
            if first:
                first, goes_on = False, isinstance(row, BadRow) and line.endswith(_AWAITS_MORE)
                _check_row(path, row)
            yield number, row


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Split at newlines only: JSON strings may hold other line separators of Unicode."""
    pieces: list[bytes] = []
    for block in blocks:
        first, *lines = block.split(b"\n")
        pieces.append(first)
        if lines:
            yield b"".join(pieces)
            yield from lines[:-1]
            pieces = [lines[-1]]
    yield b"".join(pieces)


def _parse_line(line: bytes) -> dict[str, Any] | BadRow:
    try:
        value = parse_json(line.decode("utf-8"))
        return value if isinstance(value, dict) else _object(value)
    except UnicodeDecodeError as error:
        return BadRow(NOT_UTF8, f"{error.reason} at byte {error.start}")
    except BadRow as bad:
        return bad


def _check_row(path: Path, row: dict[str, Any] | BadRow) -> None:
    """Refuse an object that holds a file's rows, which would count as one row without a column of any format."""
    for name, value in row.items() if isinstance(row, dict) and not row.keys() & _ROW_COLUMNS else ():
        if isinstance(value, list) and value and isinstance(value[0], dict) and value[0].keys() & _ROW_COLUMNS:
            raise UserError(f"{path} is one object, whose {name!r} holds the rows: write that list alone to a file")


def _object(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict | BadRow):
        return value
    return BadRow(NOT_OBJECT, f"the row is {type(value).__name__}, not an object")


def _list_rows(text: "_Text") -> Rows:
    """The items of one JSON list, which must be all that the file holds."""
    number = 0
    text.peek()  # the [
    text.at += 1
    more = text.peek() != "]"
    while more:
        number += 1
        yield number, _object(text.item(number))
        more = text.comma(number)
    text.at += 1
    if text.peek():
        raise text.error("goes on after the end of its list (a .json file holds one):", number)


def _end(text: str, at: int) -> int:
    """Where the value at a place of a text ends, of which Python may not be able to hold all.

    Raises:
        JSONDecodeError: it is no JSON, or goes on behind the text.
    """
    try:
        return _decode_any(text, at)[1]
    except RecursionError:
        return _end_of_deep(text, at)


def _end_of_deep(text: str, at: int) -> int:
    open_: list[str] = []
    while token := _TOKEN.match(text, at):
        at, mark = token.end(), token[0][-1]
        if mark in "[{":
            open_.append("]" if mark == "[" else "}")
        elif mark in "]}" and mark != open_.pop():
            break
        if not open_:
            return at
    raise json.JSONDecodeError("a list or an object has no end", text, at)


class _Text:
    """A file's text, of which only what is not read yet is held: about two items and a block."""

    def __init__(self, path: Path, blocks: Iterator[bytes]) -> None:
        self.path, self.blocks = path, blocks
        # Bytes that are not UTF-8 become lone surrogates, which the tokeniser reports for the row that holds them.
        self.decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self.text, self.at, self.ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no whitespace, which stays; "" at the file's end."""
        while True:
            self.at = _ANY_SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more()

    def item(self, number: int) -> Any:
        """The value that begins here, or a BadRow; number is for the error where there is none."""
        while True:
            try:
                try:
                    value, end = _decode(self.text, self.at)
                except json.JSONDecodeError:
                    raise
                except (ValueError, RecursionError) as error:  # as in `parse_json`
                    value = error if isinstance(error, BadRow) else BadRow(NOT_JSON, str(error))
                    end = _end(self.text, self.at)
                if end < len(self.text) or self.ended:  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    what = f"is truncated or no JSON list: item {number}: {error}:"
                    raise self.error(what, number - 1) from None
            self._more()

    def comma(self, number: int) -> bool:
        """Whether a comma and an item follow, gone to, or the list's end."""
        if usual := _COMMA.match(self.text, self.at):
            self.at = usual.end()
            return True
        mark = self.peek()
        if mark != ",":
            if mark == "]":
                return False
            raise self.error("misses a comma" if mark else "is truncated", number)
        self.at += 1
        if self.peek() in ("]", ","):
            raise self.error("has a comma too many", number)
        return True

    def error(self, what: str, number: int) -> UserError:
        while len(self.text) < self.at + _SHOWN and not self.ended:
            self._more()
        rest = self.text[self.at : self.at + _SHOWN].encode(errors="backslashreplace").decode()
        return UserError(f"{self.path} {what} after row {number}: {rest!r}")

    def _more(self) -> None:
        """Read on. Doubling what is held keeps the work linear where one item spans many blocks."""
        self.text, self.at = self.text[self.at :], 0
        wanted = 2 * len(self.text) + 1
        while len(self.text) < wanted and not self.ended:
            block = next(self.blocks, None)
            self.ended = block is None
            self.text += self.decode(block or b"", final=self.ended)
