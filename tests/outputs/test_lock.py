"""One process holds a run folder; the kernel takes the lock back when it ends, however it ends."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rmfast.errors import UserError
from rmfast.outputs import lock
from rmfast.outputs.lock import FolderLock
from rmfast.outputs.marks import LOCK

HOLD = "import sys; from pathlib import Path; from rmfast.outputs.lock import FolderLock; "
HOLD += "held = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds tmp_path/run until its standard input ends."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def test_another_process_is_refused_and_told_who_holds_it(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    who = f"is in use by process {holder.pid} on {socket.gethostname()}, since "
    for _ in range(2):
        with pytest.raises(UserError, match=f"run.dir: {tmp_path / 'run'} {who}"):
            FolderLock(tmp_path / "run")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {holder.pid} ")  # which bars nobody
    held = FolderLock(tmp_path / "run")
    assert (tmp_path / "run" / LOCK).read_text().startswith(f"process {os.getpid()} ")
    held.release()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    FolderLock(tmp_path / "a" / "b").release()
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    FolderLock(tmp_path / "mine").release()
    assert not list((tmp_path / "mine").iterdir())
    held = FolderLock(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").touch()
    held.release()
    assert (tmp_path / "a" / LOCK).read_text() == ""


def test_a_lock_on_a_file_that_was_taken_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, calls = lock.fcntl.flock, []

    def late(file: int, how: int) -> None:
        """As if the process before had removed its file between this one's open and lock."""
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / "run" / LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    held = FolderLock(tmp_path / "run")
    assert len(calls) == 2
    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path / "run")
    held.release()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    assert FolderLock(tmp_path / "run").missing == os.strerror(errno.ENOLCK)
