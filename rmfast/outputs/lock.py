"""One process at a time writes to a run folder, or to a file: a lock file names its holder and is refreshed while it
lives.

Where the file system has them, the kernel's locks decide among the processes of a machine, and of all machines where it
carries them that far. They end with their holder, but not every file system has them, and some keep those of a dead
machine. So the file's text and its age decide too. A holder writes nothing into another's file: it puts a new one in
its place, by which the one before sees that the lock is lost.
"""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rmfast.errors import RunError, UserError
from rmfast.outputs import refresh
from rmfast.outputs.marks import LOCK
from rmfast.outputs.process import Process, read_process, tag, this_process

BYTES = 1 << 16  # of a lock's text, at most
ENDED = "has ended"
REFRESH = 10.0
"""Seconds between touches; only after many of them is a lock given up."""
GRACE = 1.0
"""Seconds that a new holder has to get its name into the file, and after which two that took one lock have met."""

_held: dict[Path, "FolderLock"] = {}  # of this process, by their files


@dataclass(frozen=True)
class Words:
    """How a lock's lines call what named its folder or file, and what sets its minutes."""

    option: str
    minutes: str


RUN = Words("run.dir", " (parallel.lock_minutes)")


class FolderLock:
    """Holds a folder, which it makes, from now to `release` or the process's end, SIGKILL included.

    The file stays, empty, and marks the folder as a run's. A process that loses its lock ends, with a line.

    Args:
        minutes: without a sign of its holder, after which the lock of another machine is free.
        launchers: of this run's ranks, see `Process.followed_by`.
        file: in the folder; it alone is held then, by a lock named for it, which does not stay.

    Attributes:
        missing: why this file system gives no kernel locks, "" where it does.
        taken: a line that says from whom the lock was taken over, "" where it was free.

    Raises:
        UserError: another process holds the folder, or it cannot be made or written to.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float = 3.0,
        launchers: tuple[str, ...] = (),
        *,
        file: Path | None = None,
        words: Words = RUN,
    ) -> None:
        self.folder, self.minutes, self.words, self.missing, self.taken = folder, minutes, words, "", ""
        self.path = folder / (LOCK if file is None else f".{file.name}.lock")
        self._what = f"{words.option}: {file or folder}"
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._here, self._ended = replace(this_process(), launchers=launchers), threading.Event()
        before, sure = self._claim()
        try:
            self._file = self._replaced()
        finally:
            os.close(before)
        if not sure:
            time.sleep(GRACE)
            if not self._holds():
                os.close(self._file)
                raise UserError(self._in_use(self._holder()))
        _held[self.path.absolute()] = self
        self._keeper = threading.Thread(target=self._keep, daemon=True, name=LOCK)
        self._keeper.start()

    def _claim(self) -> tuple[int, bool]:
        """The lock file, opened, once it may be replaced; and whether the kernel's lock keeps all others from that."""
        end = time.monotonic() + GRACE
        while True:
            file = self._open()
            try:
                sure = self._may_replace(file, waited=time.monotonic() > end)
            except UserError:
                os.close(file)
                raise
            if sure is not None:
                return file, sure
            os.close(file)
            time.sleep(GRACE / 20)

    def _may_replace(self, file: int, waited: bool) -> bool | None:
        """Whether the kernel's lock keeps all others from replacing the file; None where it is to be opened again."""
        locked = self._lock(file)
        if not _is_file(file, self.path):  # replaced since, or taken away
            return None
        holder = read_process(os.pread(file, BYTES, 0).decode(errors="replace"))
        why = self._why_free(file, holder, locked)
        # Who has the kernel's lock may be about to write its name; else it is a child that a dead holder left.
        if locked is False and (holder is None or why == ENDED) and not waited:
            return None
        if why is None:
            raise UserError(self._in_use(holder))
        if holder is not None:
            self.taken = f"{self._what} was in use by {holder}, which {why}: its lock is taken over"
        return locked is True and (holder is None or holder.same_kernel(self._here))

    def _open(self) -> int:
        """The lock file; it and its folder are made where they are not there."""
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                line = f"{self.words.option}: cannot make the folder {self.folder}: {error.strerror}"
                raise UserError(line) from None
            try:
                return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and not self.folder.exists():  # taken away since
                    continue
                raise self._cannot_write(error) from None

    def _replaced(self) -> int:
        """A lock file that names this process, locked, in place of the one before."""
        temporary = self._partial()
        try:
            file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                os.write(file, self._here.text().encode())
                os.fsync(file)  # for readers on other machines
                with contextlib.suppress(OSError):  # where there are none; `missing` says so
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(temporary, self.path)
            except OSError:
                os.close(file)
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._cannot_write(error) from None
        return file

    def _cannot_write(self, error: OSError) -> UserError:
        return UserError(f"{self.words.option}: cannot write to the folder {self.folder}: {error.strerror}")

    def _partial(self) -> Path:
        return self.folder / f".{self.path.name.removeprefix('.')}.{tag()}.partial"

    def _now(self) -> float:
        """The time by which the file system dates files."""
        probe = self._partial()
        try:
            file = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                return os.fstat(file).st_mtime
            finally:
                os.close(file)
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _holder(self) -> Process | None:
        try:
            return read_process(self.path.read_bytes()[:BYTES].decode(errors="replace"))
        except OSError:
            return None

    def _lock(self, file: int) -> bool | None:
        """Whether the kernel gives its lock; None where it has none."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self.missing = error.strerror or str(error)
            return None
        return True

    def _why_free(self, file: int, holder: Process | None, locked: bool | None) -> str | None:
        """Why a lock is free, in words that follow its holder's; None where it is not."""
        if holder is None:
            return None if locked is False else ""
        near = holder.same_kernel(self._here)
        if (near and locked) or holder.is_gone(self._here):
            return ENDED
        if near and holder.space == self._here.space:
            return None
        if holder.followed_by(self._here):
            return "is an earlier start of this job"
        # Both times are the file system's: clocks of machines differ.
        if self._now() - os.fstat(file).st_mtime >= 60 * self.minutes:
            return f"has given no sign for {self.minutes:g} minutes"
        return None

    def _in_use(self, holder: Process | None) -> str:
        advice = f"wait until it ends, end it, or choose another {self.words.option}"
        if holder is not None and not holder.same_kernel(self._here):
            advice += f"; {self.minutes:g} minutes{self.words.minutes} without a sign of it free the folder"
        return f"{self._what} is in use by {holder or 'another process'}; {advice}"

    def _keep(self) -> None:
        """Refresh the lock and end the process when it is lost."""
        helper = None
        while not self._ended.wait(REFRESH):
            helper = helper or self._helper()
            with contextlib.suppress(OSError):  # as of a server that does not answer for now
                os.utime(self._file)
            if line := self.lost():
                print(f"rmfast: {line}", file=sys.stderr, flush=True)
                os._exit(1)  # whatever else this process is about to write
        if helper is not None:
            with helper:  # not by its input's end: a child that was forked meanwhile has that open too
                helper.kill()

    def _helper(self) -> "subprocess.Popen[bytes] | None":
        """What refreshes the lock while a call holds the interpreter's; None where it cannot be started."""
        try:
            file = os.open(self.path, os.O_RDONLY)  # a descriptor without the kernel's lock
            try:
                if not os.path.samestat(os.fstat(file), os.fstat(self._file)):
                    return None
                words = [sys.executable, "-I", "-S", refresh.__file__, str(file), str(REFRESH)]
                null = subprocess.DEVNULL
                return subprocess.Popen(  # in a new session: it goes on where a terminal stops this process
                    words, stdin=subprocess.PIPE, stdout=null, stderr=null, pass_fds=(file,), start_new_session=True
                )
            finally:
                os.close(file)
        except OSError:
            return None

    def _holds(self) -> bool:
        """Whether the lock file is this one's still; also where that cannot be seen."""
        try:
            return _is_file(self._file, self.path)
        except OSError:
            return True

    def lost(self) -> str | None:
        """A line that says how the lock was lost; None where it is held."""
        if self._holds():
            return None
        holder = self._holder()
        how = f"was taken over by {holder}" if holder else f"or its {self.path.name} was moved or removed"
        return f"{self._what} {how}; this process writes there no more"

    def notes(self) -> Iterator[str]:
        """What is to be said of how it was taken."""
        if self.taken:
            yield self.taken
        if self.missing:
            yield (
                f"{self.words.option}: its file system gives no locks ({self.missing}): the text and the age of "
                f"{self.path.name} alone keep a second process out"
            )

    def move(self, target: Path) -> None:
        """Rename the folder, and let it go."""
        self._stop()
        try:
            os.replace(self.folder, target)
        finally:
            self._close()

    def release(self) -> None:
        """Let go; a folder that was made for nothing is taken away again."""
        self._stop()
        self._close()

    def _stop(self) -> None:
        self._ended.set()
        self._keeper.join()  # it must not take what follows for a loss
        _held.pop(self.path.absolute(), None)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            alone = self.path.name != LOCK or os.listdir(self.folder) == [LOCK]
            if alone and _is_file(self._file, self.path):
                self.path.unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._file)


def check_held(folder: Path) -> None:
    """Before something is written: whether this process has lost a lock that it took on the folder.

    Raises:
        RunError: it has.
    """
    lock = _held.get((folder / LOCK).absolute())
    if lock is not None and (line := lock.lost()):
        raise RunError(line)


def _is_file(handle: int, path: Path) -> bool:
    """Whether an open file has that name still."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError as error:
        # NFS says of an open file that another machine has replaced that it is stale.
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise
