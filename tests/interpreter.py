"""Triton's interpreter, without what it looks up again at every start of a kernel."""

import inspect
from types import SimpleNamespace
from typing import Any


def remember_builtins() -> None:
    """Have the interpreter list the functions of Triton's language once: it replaces them at each start of a kernel,
    and asks for all members of its modules each time, a quarter of a small test's time."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    names: dict[Any, list[str]] = {}

    def getmembers(holder: Any, *predicate: Any) -> list[tuple[str, Any]]:
        if predicate:
            return inspect.getmembers(holder, *predicate)
        if holder not in names:
            names[holder] = [name for name, member in inspect.getmembers(holder) if is_builtin(member)]
        return [(name, getattr(holder, name)) for name in names[holder]]

    interpreter.inspect = SimpleNamespace(**vars(inspect) | {"getmembers": getmembers})
