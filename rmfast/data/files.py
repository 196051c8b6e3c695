"""Files and folders that are whole or not there: written under a temporary name, flushed, then renamed."""

import contextlib
import ctypes
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rmfast.outputs.failure import naming
from rmfast.outputs.process import left_behind, tag

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
DAY = 86400.0
FLUSH = 10.0
"""Seconds of lines that the death of a machine may cost, where to force each would cost more than to make it again."""


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of all that a folder holds and of itself last."""
    for inside in path.rglob("*") if path.is_dir() else ():
        sync(inside)
    sync(path)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file or folder its name, in place of what has it; a crash leaves the old one or the new one.

    Of two folders the names are exchanged. A file system that cannot do that has an instant without `final`, in which,
    as after a crash in it, `current` finds the old one.
    """
    sync_tree(temporary)
    if not final.is_dir():
        os.replace(temporary, final)
        sync(final.parent)
    elif _exchange(temporary, final):
        sync(final.parent)
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        old = _old(final)
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(old, final)
            raise
        sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)


def publish_first(temporary: Path, final: Path) -> None:
    """Give a finished folder its name, unless another one of it was first."""
    sync_tree(temporary)
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            raise
    sync(final.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one go; False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    return call is not None and call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def current(folder: Path) -> Path:
    """Where a folder is that `publish` gives its name, also while it replaces another one."""
    places = (folder, _old(folder), folder) if folder.name else ()  # the last: it may be there by then
    return next((place for place in places if place.exists()), folder)


def mend(folder: Path, *names: str) -> None:
    """Give the folders their names back that a crash in `publish` took; nobody may write there.

    Args:
        names: of what `publish` writes there, as patterns; others are not touched.
    """
    for old in (old for name in names for old in folder.glob(_old(Path(name)).name)):
        name = folder / old.name[1 : -len(".old")]
        if os.path.lexists(name):
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, name)


def temporary_name(path: Path) -> Path:
    """A name beside `path`, with its ending, that no other process uses; `sweep` knows by it whose it was."""
    return path.with_name(f".{path.stem[:100]}.{tag()}.partial{path.suffix}")


def sweep(folder: Path, also: str | None = None) -> None:
    """Remove what writers that have ended left in a folder under a `temporary_name`. Processes of other machines cannot
    be asked: theirs goes after a day without a change.

    Args:
        also: a pattern of other names that nobody knows the writers of.
    """
    for left in folder.glob(".*"):
        named = re.search(r"-\d*-\d+\.partial", left.name) or (also and re.fullmatch(also, left.name))
        if left_behind(left.name) or (named and _unchanged(left) > DAY):
            remove(left)


def _unchanged(path: Path) -> float:
    """Seconds since a file, or anything in a folder, was last written to."""
    times = [0.0]
    for file in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(file.stat().st_mtime)
    return time.time() - max(times)


def remove(path: Path) -> None:
    """Take away a file or a folder that may be gone already, or that cannot be taken away."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its ending, to write a file to; it becomes `path` when the block ends well.

    No other process uses it: jobs of several machines may write the same file at once.
    """
    temporary = temporary_name(path)
    try:
        with naming(path, temporary):
            yield temporary
            publish(temporary, path)
    finally:
        remove(temporary)


def partial_name(folder: Path) -> Path:
    """What `folder_written_whole` writes to."""
    return folder.with_name(f".{folder.name}.partial")


@contextlib.contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """The same of a folder, of which one process at a time is the writer. Where it was not the disk that failed, an
    unfinished one stays to be looked at, until the next one."""
    temporary = partial_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with naming(path, temporary):
            yield temporary
            publish(temporary, path)
    except OSError:
        remove(temporary)
        raise


class FlushedLines:
    """Lines of an open file, each handed to the system at once, and forced onto the disk every `FLUSH` seconds."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self._forced = file, time.monotonic()

    def write(self, line: bytes) -> None:
        """Append one."""
        self.file.write(line)
        self.file.flush()
        if time.monotonic() - self._forced >= FLUSH:
            self.force()

    def force(self) -> None:
        """Force onto the disk what was written so far."""
        os.fsync(self.file.fileno())
        self._forced = time.monotonic()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)
