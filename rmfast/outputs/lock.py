"""One process at a time writes to a run folder: a lock that the kernel takes back when its holder ends, however."""

import contextlib
import fcntl
import os
import socket
from datetime import datetime
from pathlib import Path

from rmfast.errors import UserError
from rmfast.outputs.marks import LOCK

BYTES = 500  # that are shown of who holds a lock


class FolderLock:
    """Holds a folder, which it makes, from now to `release` or the process's end, SIGKILL included.

    The file's text is for people; the lock is the kernel's, so the text of a process that died blocks no other. The
    file stays, empty, and marks the folder as a run's.

    Attributes:
        missing: why this file system gives no lock, "" where it does.

    Raises:
        UserError: another process holds the folder, or it cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.missing = folder, ""
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        while True:
            self._file = _open(folder)
            self._lock()
            if _is_file(self._file, folder / LOCK):
                break
            os.close(self._file)  # another process, at its end, took the file away before it was locked
        text = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%F %T}\n"
        with contextlib.suppress(OSError):  # as of a full disk: the lock holds all the same
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)
            os.fsync(self._file)  # for readers on other machines

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, BYTES, 0).decode(errors="replace").strip() or "another process"
            os.close(self._file)
            raise UserError(
                f"run.dir: {self.folder} is in use by {holder}; wait until it ends, end it, or choose another run.dir"
            ) from None
        except OSError as error:
            self.missing = error.strerror or str(error)

    def release(self) -> None:
        """Let go; a folder that was made for nothing is taken away again."""
        with contextlib.suppress(OSError):  # the folder may have been moved
            os.ftruncate(self._file, 0)
            if _is_file(self._file, self.folder / LOCK) and os.listdir(self.folder) == [LOCK]:
                (self.folder / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._file)


def _open(folder: Path) -> int:
    """The lock file of a folder; both are made where they are not there."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run.dir: cannot make the folder {folder}: {error.strerror}") from None
        try:
            return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not folder.exists():  # taken away since
                continue
            raise UserError(f"run.dir: cannot write to the folder {folder}: {error.strerror}") from None


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
