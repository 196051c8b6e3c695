"""Tables of tile sizes: a line for each generation of devices, kind of work and size that has a separate tile."""

import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

ANY = 1 << 62  # a size that nothing exceeds
Key = tuple[int | str, ...]


class Table(Generic[T]):
    """Tiles by (generation, kinds ..., largest size).

    A generation is ten times the compute capability's first number and its second: 80, 90. The line for a size is the
    one with the smallest "largest size" that holds it among generations that are not newer than the device, and of
    those the newest; a device older than all lines takes the oldest.

    The lines are a plain dict literal, one line each: `benchmarks/gpu` prints the winners of its search so.
    """

    def __init__(self, lines: dict[Key, T]) -> None:
        self.lines = lines
        self._found: dict[Key, T] = {}

    def key(self, capability: tuple[int, int], *kinds: str, size: int) -> Key:
        """The line that holds for a device, kinds of work and a size.

        Raises:
            KeyError: there is none.
        """
        generation = 10 * capability[0] + capability[1]
        fit = [key for key in self.lines if key[1:-1] == kinds and int(key[-1]) >= size]
        if not fit:
            raise KeyError(f"no tile for {kinds} of size {size}")
        oldest = min(int(key[0]) for key in fit)  # serves devices older than every line
        known = [key for key in fit if int(key[0]) <= max(generation, oldest)]
        bound = min(int(key[-1]) for key in known)
        newest = max(int(key[0]) for key in known if key[-1] == bound)
        return (newest, *kinds, bound)

    def find(self, capability: tuple[int, int], *kinds: str, size: int) -> T:
        """The tile of that line."""
        asked: Key = (*capability, *kinds, size)
        if asked not in self._found:
            self._found[asked] = self.lines[self.key(capability, *kinds, size=size)]
        return self._found[asked]

    @contextlib.contextmanager
    def replaced(self, key: Key, tile: T) -> Iterator[None]:
        """With another tile on a line, or with one line more; for searches."""
        before = self.lines
        self.lines, self._found = before | {key: tile}, {}
        try:
            yield
        finally:
            self.lines, self._found = before, {}
