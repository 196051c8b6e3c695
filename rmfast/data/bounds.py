"""Bounds of rendering: jinja's sandbox keeps a template from doing harm, but neither from running on nor from growing.

Each operation that makes a larger text or list of smaller ones is asked how large before it is done. Time is the CPU's
for the thread that renders, whichever that is: each pass of a loop, each call and each item of a filter that calls
others looks at it. What a template does between two looks is bounded by its length and the sizes of what it has.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from functools import wraps
from typing import Any, TypeVar

from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST = 10_000_000
"""Characters of a text, or items of a list, that a template may make; also the largest width that it may ask for."""
BITS = 10_000
"""Of an integer."""
SECONDS = 10.0
"""CPU time of one rendering; a thousandth of it is much."""

GROWING = frozenset({"batch", "center", "format", "indent", "join", "replace", "slice", "tojson", "wordwrap"})
"""Filters whose result may be much larger than what they are given."""

_OF_LOOPS = frozenset({"first", "last", "index", "index0", "length", "revindex", "revindex0", "depth", "depth0"})

Result = TypeVar("Result")
_WIDTH = re.compile(r"\d{8}")  # in a format


class TookTooLong(BaseException):
    """A rendering ran out of time. No template, and nothing else on the way, takes it for an error of its data."""


class _Clock(threading.local):
    """When a thread's rendering has to be done, in seconds of its CPU time."""

    end = float("inf")

    def look(self) -> None:
        """End a rendering that has run out of time."""
        if time.thread_time() > self.end:
            raise TookTooLong


_clock = _Clock()


def in_time(run: Callable[[], Result]) -> Result:
    """What a call that renders gives.

    Raises:
        TookTooLong: it takes more than `SECONDS`.
    """
    _clock.end = time.thread_time() + SECONDS
    try:
        return run()
    finally:
        _clock.end = float("inf")


@pass_context  # without a context jinja would call it while it compiles, once
def _look(context: Context, value: bool) -> bool:
    _clock.look()
    return value


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose texts, lists and numbers have a largest size; beyond it an operation raises OverflowError.

    What + and ~ add up is asked for where it is kept: where it is assigned, passed or written. Between these an
    expression can add no more texts than it names.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        plain, self.filters = self.filters, _Filters(bounded=_bounded, look=_look)
        for name, run in plain.items():
            self.filters[name] = run
        self.globals.pop("lipsum", None)  # as much text as it is asked for, without a look

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for assigned in tree.find_all(nodes.Assign):
            assigned.node = self._bounded(assigned.node)
        for block in tree.find_all(nodes.With):
            block.values = [self._bounded(value) for value in block.values]
        for loop in tree.find_all(nodes.For):
            look = self._filter(nodes.Const(True), "look", loop.lineno)
            if loop.test is None:
                loop.body.insert(0, nodes.ExprStmt(look, lineno=loop.lineno, environment=self))
            else:
                loop.test = nodes.And(look, loop.test, lineno=loop.lineno, environment=self)
        return tree

    def _bounded(self, value: nodes.Node) -> nodes.Filter:
        return self._filter(value, "bounded", value.lineno)

    def _filter(self, value: nodes.Node, name: str, line: int) -> nodes.Filter:
        return nodes.Filter(value, name, [], [], None, None, lineno=line, environment=self)

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        """A template's global names as one dict, which each rendering copies: jinja's chain of two is slow to copy."""
        return {**self.globals, **(d or {})}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An attribute; those of loops, which are asked for at each turn, are safe."""
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operation, where its result is of a size that may be."""
        if operator == "*":
            _check_product(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check(left.bit_length() * right, BITS)
        return super().call_binop(context, operator, left, right)

    def call_filter(self, *arguments: Any, **options: Any) -> Any:
        """What a filter such as `map` calls for each item."""
        _clock.look()
        return super().call_filter(*arguments, **options)

    def call_test(self, *arguments: Any, **options: Any) -> Any:
        """What a filter such as `select` calls for each item."""
        _clock.look()
        return super().call_test(*arguments, **options)

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **options: Any) -> Any:  # noqa: B902, N805
        """The call, where there is time for it and what it is given and its result are of a size that may be."""
        _clock.look()
        given = (*arguments, *options.values())
        for one in given:
            _bounded(one)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str):
            _check_call(__obj.__name__, text, given)
        return super().call(__context, __obj, *arguments, **options)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """What stands for a text's `format`."""
        run = super().wrap_str_format(value)
        if run is None:
            return None

        @wraps(run)
        def bounded(*arguments: Any, **options: Any) -> str:
            _check_format(value.__self__, (*arguments, *options.values()))
            return run(*arguments, **options)

        return bounded

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a template writes, joined."""
        kept = list(parts)
        _check(sum(map(len, kept)))
        return "".join(kept)


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that are bounded, those that are added too."""

    def __setitem__(self, name: str, run: Callable[..., Any]) -> None:
        super().__setitem__(name, _bounded_filter(name, run) if name in GROWING else run)


def _bounded(value: Any) -> Any:
    """The same value, of a size that may be."""
    if isinstance(value, str | list | tuple):
        _check(len(value))
    return value


def _bounded_filter(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    passed = getattr(run, "jinja_pass_arg", None)  # a context in front of the value

    @wraps(run)
    def bounded(*arguments: Any, **options: Any) -> Any:
        value, *more = arguments[1:] if passed else arguments
        if name == "join" and more:  # the other way round than text's method
            _check_call(name, more[0], (value,))
        else:
            _check_call(name, value, (*more, *options.values()))
        return run(*arguments, **options)

    return bounded


def _check_call(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    """Refuse a filter, or a method of a text, whose result would be too large."""
    for argument in arguments:
        if isinstance(argument, int):  # a width, or how many
            _check(argument)
    if name == "replace" and len(arguments) > 1 and all(isinstance(a, str) for a in (value, *arguments[:2])):
        old, new = arguments[:2]
        _check(len(value) + value.count(old) * len(new))
    elif name == "join" and isinstance(value, str) and arguments and isinstance(arguments[0], list | tuple | str):
        _check(len(value) * len(arguments[0]) + sum(len(one) for one in arguments[0] if isinstance(one, str)))
    elif name == "format" and isinstance(value, str):
        _check_format(value, arguments)


def _check_format(form: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a format that pads to a width which is too large."""
    if _WIDTH.search(form):
        _check(LARGEST + 1)
    if "*" in form or "{" in form:
        for argument in arguments:
            _check(argument if isinstance(argument, int) else 0)
    _check(len(form) + sum(len(one) for one in arguments if isinstance(one, str)))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() + right.bit_length(), BITS)
        return
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple | bytes) and isinstance(times, int):
            _check(len(many) * times)


def _check(size: int, largest: int | None = None) -> None:
    most = LARGEST if largest is None else largest
    if size > most:
        what = "bits of a number" if largest else "characters or items"
        raise OverflowError(f"more than {most:,} {what}")
