"""How a command ends of an error: in one line, which says of a disk that is full, read-only or gone what to do."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rmfast.errors import RunError, UserError, plain

ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of the quota there",
    errno.EFBIG: "a limit (ulimit -f) or its file system allows no file of that size",
    errno.EROFS: "its file system is read-only",
    errno.EACCES: "it, or its folder, is not this user's to change",
    errno.EPERM: "it, or its folder, is not this user's to change",
    errno.ENOENT: "it, or its folder, was moved or removed",
    errno.ENOTDIR: "a folder that it was in is none now",
    errno.ESTALE: "its file server has lost it",
    errno.EIO: "the disk or its server fails: the system's log says how",
}

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of which reading knows nothing


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Within it, errors of the system that name no file name this one, also those of libraries that are no OSError.

    Args:
        temporary: another name of it until it is finished, which says nothing to the user.
    """
    try:
        yield
    except OSError as error:
        hidden = temporary is not None and str(error.filename).startswith(str(temporary))
        if error.errno is not None and (error.filename is None or hidden):
            error.filename = str(path)
        raise
    except Exception as error:
        if (number := _number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def disk_line(error: BaseException, default: Path | None = None) -> str | None:
    """What an error of the file system is called, with advice; None for any other error, and for one that has a line.

    Args:
        default: the file that it names where the error names none.
    """
    number = _number(error)
    if number not in ADVICE:
        return None
    file = getattr(error, "filename", None) or default or "a file"
    verb = "be written" if number in WRITING else "be read or written"
    return f"{file}: cannot {verb}: {os.strerror(number)}; {ADVICE[number]}"


def ending(error: BaseException) -> tuple[int, str] | None:
    """How a command ends after an error that a person can mend: its exit code and its line; None after others.

    A file that cannot be read or written is a person's to mend: 2, unless a run that had begun has made a `RunError` of
    it.
    """
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, RunError):
        return 1, str(error)
    line = disk_line(error)
    if line is None and isinstance(error, OSError) and error.filename is not None:
        line = f"{error.filename}: {error.strerror}"
    return None if line is None else (2, plain(line))


def _number(error: BaseException) -> int | None:
    """The system's number of an error. Libraries in Rust (safetensors, tokenizers) have it in their text alone."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, UserError | RunError):  # a line already, which may quote such a text
        return None
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
