"""No output is an input, or inside one: both are compared as the file system knows them, whatever names lead there."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rmfast.errors import UserError

Identity = tuple[int, int]
"""Device and inode: the same for links of both kinds, other spellings, and other case where the system ignores it."""


@dataclass(frozen=True)
class Input:
    """Something that is read. `name`: the option or key that gave it. What is not on this machine is no input."""

    name: str
    path: Path


@dataclass(frozen=True)
class Output:
    """Something that is written.

    Attributes:
        name: the option or key that gave it. mend: what to do where it is refused.
        replaced: whether all that a folder of that name holds goes; False where files are only added to it.
    """

    name: str
    path: Path
    mend: str
    replaced: bool = True


def identity(path: Path) -> Identity | None:
    """What identifies a file or folder; None where there is neither."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # a ValueError: a name that no file can have
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else None


def around(path: Path) -> set[Identity]:
    """The folders that a path is in, those that links hide and those that hold a path that is not there yet."""
    real = Path(os.path.realpath(path))
    return {found for folder in real.parents if (found := identity(folder))}


def check_overlap(outputs: Sequence[Output], inputs: Sequence[Input]) -> None:
    """Refuse an output that is an input, is inside one, or would take one with it.

    Raises:
        UserError: names both, and what to do.
    """
    given, files = [(one, found) for one in inputs if (found := identity(one.path))], cache(_files)
    for output in outputs:
        written, folders, is_file = identity(output.path), around(output.path), output.path.is_file()
        for one, read in given:
            if read == written or (is_file and written in files(one.path)):
                what = "would overwrite" if output.replaced else "is"
                raise UserError(f"{output.name}: {output.path} {what} {one.name}, {one.path}; {output.mend}")
            if read in folders:
                raise UserError(
                    f"{output.name}: {output.path} is inside {one.name}, {one.path}, which is only read; {output.mend}"
                )
            if output.replaced and written and written in around(one.path):
                raise UserError(
                    f"{output.name}: {output.path}, which would be replaced, holds {one.name}, {one.path}; "
                    f"{output.mend}"
                )


def _files(folder: Path) -> set[Identity | None]:
    """Of every file of a folder: one of them may have another name outside it."""
    return {identity(Path(root, name)) for root, _, names in os.walk(folder) for name in names}
