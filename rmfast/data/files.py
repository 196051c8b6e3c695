"""Files and folders that are whole or not there: written under a temporary name, flushed, then renamed."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """`sync` of a file, or of all that a folder holds and of itself last."""
    for inside in path.rglob("*") if path.is_dir() else ():
        sync(inside)
    sync(path)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file or folder its name, in place of what has it; a crash leaves the old one or the new one."""
    sync_tree(temporary)
    if final.is_dir():
        shutil.rmtree(final)  # no folder can be replaced in one go
    os.replace(temporary, final)
    sync(final.parent)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its ending, to write a file to; it becomes `path` when the block ends well.

    No other process uses it: jobs of several machines may write the same file at once.
    """
    temporary = path.with_name(f".{path.stem}.{socket.gethostname()}-{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
