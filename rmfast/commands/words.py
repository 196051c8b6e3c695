"""What the words of a command line may be: numbers within bounds, dates, columns, names that a file could have."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import Any, NoReturn

from rmfast.data.clock import iso_date
from rmfast.data.columns import Columns, read_columns
from rmfast.errors import UserError, plain
from rmfast.paths import usable_path


class WordParser(ArgumentParser):
    """A parser whose options, where they have no `type`, are paths or names; what it refuses is printed on one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register("type", None, name)

    def add_subparsers(self, **options: Any) -> Any:
        self.register("type", None, str)  # what follows a command's name is the command's to read
        return super().add_subparsers(**options)

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def name(text: str) -> str:
    """A path or a name, for argparse."""
    return _typed(usable_path, text)


def template(text: str) -> str:
    """A chat template's file, or its text."""
    return text if "{" in text else name(text)


def date(text: str) -> str:
    """A date as YYYY-MM-DD."""
    return _typed(iso_date, text)


def _typed(read: Callable[[str], str], text: str) -> str:
    try:
        return read(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _number(kind: type[int] | type[float], low: float, high: float, words: str) -> Callable[[str], Any]:
    """A number from `low` to `high`."""

    def read(text: str) -> int | float:
        if not text.isascii() or "_" in text:  # which Python takes for digits
            raise ValueError
        if not low <= (value := kind(text)):
            raise ArgumentTypeError(f"{text} is not {words}")
        if value > high:
            raise ArgumentTypeError(f"{text} is above {high:,.0f}")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


positive = _number(int, 1, 2**31 - 1, "positive")
count = _number(int, 0, 2**31 - 1, "a number of at least 0")
port = _number(int, 0, 2**16 - 1, "a port, which is at least 0")
machines = _number(int, 1, 2**20, "positive")
amount = _number(float, 0, 1e9, "a number of at least 0")
positive_amount = _number(float, sys.float_info.min, 1e9, "positive")


def columns_of(options: Namespace) -> Columns:
    """--columns."""
    try:
        return read_columns(options.columns)
    except ValueError as error:
        raise UserError(f"--columns {error}") from None
