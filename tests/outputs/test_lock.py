"""One process holds a run folder: the kernel, the lock's text and its age say whether the one before still does."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rmfast.errors import RunError, UserError
from rmfast.outputs import lock
from rmfast.outputs.lock import FolderLock, Words, check_held
from rmfast.outputs.marks import LOCK, is_run
from rmfast.outputs.process import Process, read_process, this_process
from rmfast.parallel.gather import LAUNCHERS

HOLD = """
import os, sys, time
from pathlib import Path
from rmfast.outputs import lock
lock.REFRESH = float(sys.argv[2])
held = lock.FolderLock(Path(sys.argv[1]))
child = 0 if sys.argv[3] == "alone" else os.fork()
if child or sys.argv[3] == "alone":
    print("held", child, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(folder: Path, refresh: float = 10, child: str = "alone") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder until its standard input ends; with a child that has its open files."""
    words = [sys.executable, "-c", HOLD, str(folder), str(refresh), child]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None and p.stdout.readline().startswith("held ")
        yield p


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def no_kernel_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "GRACE", 0.01)


ELSEWHERE = {"host": "n2", "boot": "another"}


def left_by(run: Path, age: float = 0.0, **who: object) -> Process:
    """A lock as another process left it, so many seconds ago; who that was."""
    holder = replace(this_process(), **who)
    run.mkdir(exist_ok=True)
    (run / LOCK).write_text(holder.text())
    os.utime(run / LOCK, (0, time.time() - age))
    return holder


def named(run: Path) -> Process | None:
    return read_process((run / LOCK).read_text())


def test_another_process_is_refused_and_told_who_holds_it(run: Path) -> None:
    with holding(run) as other:
        who = f"run.dir: {run} is in use by process {other.pid} on {socket.gethostname()}, since "
        for _ in range(2):
            with pytest.raises(UserError, match=who) as refused:
                FolderLock(run)
            assert "lock_minutes" not in str(refused.value) and "\n" not in str(refused.value)
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    dead = named(run)
    assert dead is not None and dead.pid == other.pid  # which bars nobody
    held = FolderLock(run)
    assert held.taken == f"run.dir: {run} was in use by {dead}, which has ended: its lock is taken over"
    assert named(run) == held._here and os.listdir(run) == [LOCK]
    held.release()


def test_a_child_of_a_dead_holder_bars_nobody(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "GRACE", 0.02)
    with holding(run, child="with a child") as other:
        os.kill(other.pid, signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        held = FolderLock(run)  # though the child has the kernel's lock still
        assert "has ended" in held.taken
        held.release()


def test_who_has_the_kernels_lock_may_be_about_to_write_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = this_process().began
    assert began is not None
    dead = left_by(run, began=began - 1)  # whose name is in the file still
    with (run / LOCK).open() as before, (run / "new").open("w") as new:
        fcntl.flock(before, fcntl.LOCK_EX)

        def meanwhile(seconds: float) -> None:
            assert named(run) == dead  # nothing was put in its place
            new.write(this_process().text())
            new.flush()
            fcntl.flock(new, fcntl.LOCK_EX)
            os.replace(run / "new", run / LOCK)

        monkeypatch.setattr(lock.time, "sleep", meanwhile)
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
            FolderLock(run)


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
    assert FolderLock(tmp_path / "a").taken == ""


def test_a_folder_that_is_moved_is_let_go(run: Path) -> None:
    held = FolderLock(run)
    (run / "config.yaml").touch()
    held.move(run.with_name("run.1"))
    assert (run.with_name("run.1") / LOCK).read_text() == "" and not run.exists()
    FolderLock(run.with_name("run.1")).release()


def test_a_lock_on_a_file_that_was_taken_away_is_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, calls = lock.fcntl.flock, []

    def late(file: int, how: int) -> None:
        """As if the process before had removed its file between this one's open and lock."""
        calls.append(file)
        if len(calls) == 1:
            (run / LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    held = FolderLock(run)
    assert len(calls) == 3  # of the file that went, of the next one and of the one in its place
    with pytest.raises(UserError, match="in use"):
        FolderLock(run)
    held.release()


def test_without_kernel_locks_the_living_are_told_from_the_dead(run: Path, no_kernel_locks: None) -> None:
    held = FolderLock(run)
    assert held.missing == os.strerror(errno.ENOLCK) and not held.taken
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        FolderLock(run)
    held.release()
    began = this_process().began
    assert began is not None
    left_by(run, began=began - 1)  # of an earlier process with this one's number
    again = FolderLock(run)
    assert "has ended" in again.taken
    again.release()


@pytest.mark.parametrize("locks", ["kernel", "none"])
def test_a_lock_of_another_machine_is_free_after_minutes_without_a_sign(
    run: Path, locks: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if locks == "none":
        request.getfixturevalue("no_kernel_locks")
    monkeypatch.setattr(lock, "GRACE", 0.01)
    for age in (0, 170):
        other = left_by(run, age, **ELSEWHERE)
        with pytest.raises(UserError, match=r"process \d+ on n2") as refused:
            FolderLock(run)
        assert "; 3 minutes (parallel.lock_minutes) without a sign of it free the folder" in str(refused.value)
        assert named(run) == other and os.listdir(run) == [LOCK]
    with pytest.raises(UserError, match="in use by"):
        left_by(run, 190, **ELSEWHERE)
        FolderLock(run, minutes=4)
    held = FolderLock(run)
    assert held.taken.endswith("which has given no sign for 3 minutes: its lock is taken over")
    held.release()


def test_clocks_of_machines_may_differ(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(run, 170, **ELSEWHERE)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    with pytest.raises(UserError, match="on n2"):
        FolderLock(run)


def test_a_later_start_of_a_job_takes_the_lock_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a node's death: the holder cannot be asked, and Slurm has started the job again elsewhere."""
    monkeypatch.setattr(lock, "GRACE", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    for other in ({"job": "13", "restarts": 0}, {"job": "12", "restarts": 2}):
        left_by(run, **ELSEWHERE, **other)
        with pytest.raises(UserError, match="on n2, job 1"):
            FolderLock(run)
    first = left_by(run, **ELSEWHERE, job="12", restarts=1)
    held = FolderLock(run)
    assert held.taken == (
        f"run.dir: {run} was in use by {first}, which is an earlier start of this job: its lock is taken over"
    )
    held.release()


def test_an_elastic_restart_on_another_machine_takes_the_lock_over_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GRACE", 0.01)
    before = left_by(run, **ELSEWHERE, launchers=("first node's", "second node's"))
    with pytest.raises(UserError, match="in use by"):
        FolderLock(run, launchers=("another job's",))
    held = FolderLock(run, launchers=("second node's", "third node's"))
    assert held.taken == (
        f"run.dir: {run} was in use by {before}, which is an earlier start of this job: its lock is taken over"
    )
    found = named(run)
    assert found is not None and found.launchers == ("second node's", "third node's")
    held.release()


def test_a_lock_of_the_largest_job_is_read_whole(run: Path) -> None:
    held = FolderLock(run, launchers=tuple(f"{node:016x}" for node in range(LAUNCHERS)))
    assert (run / LOCK).stat().st_size < lock.BYTES and named(run) == held._here
    held.release()


def test_a_file_is_held_without_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    held, other = FolderLock(tmp_path, file=file), FolderLock(tmp_path, file=tmp_path / "b.jsonl")
    with pytest.raises(UserError) as refused:
        FolderLock(tmp_path, file=file, words=Words("--out", ""))
    assert str(refused.value) == (
        f"--out: {file} is in use by {held._here}; wait until it ends, end it, or choose another --out"
    )
    assert not is_run(tmp_path)
    check_held(tmp_path)
    (tmp_path / ".a.jsonl.lock").unlink()
    assert (
        held.lost() == f"run.dir: {file} or its .a.jsonl.lock was moved or removed; this process writes there no more"
    )
    held.release(), other.release()
    assert not list(tmp_path.iterdir())


def test_of_two_that_take_a_lock_over_the_last_one_has_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(run, 600, **ELSEWHERE)

    def meanwhile(seconds: float) -> None:
        assert seconds == lock.GRACE
        third = replace(this_process(), host="n3")
        (run / "new").write_text(third.text())
        os.replace(run / "new", run / LOCK)

    monkeypatch.setattr(lock.time, "sleep", meanwhile)
    with pytest.raises(UserError, match="in use by process .* on n3"):
        FolderLock(run)


def test_who_has_lost_the_lock_does_not_write(run: Path) -> None:
    check_held(run)  # never held
    held = FolderLock(run)
    check_held(run)
    (run / "new").write_text(replace(this_process(), host="n3").text())
    os.replace(run / "new", run / LOCK)
    with pytest.raises(RunError, match=f"{run} was taken over by process {os.getpid()} on n3.*writes there no more$"):
        check_held(run)
    (run / LOCK).unlink()
    with pytest.raises(RunError, match=f"{run} or its {LOCK} was moved or removed; this process writes there no more"):
        check_held(run)
    held.release()
    check_held(run)


def test_a_lock_that_nfs_calls_stale_is_lost_and_one_that_cannot_be_seen_is_not(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = FolderLock(run)
    for number, lost in ((errno.ESTALE, True), (errno.EIO, False), (errno.ETIMEDOUT, False)):
        with monkeypatch.context() as patch:
            patch.setattr(lock.os, "fstat", _failing(number))
            assert (held.lost() is not None) == lost
    held.release()


def _failing(number: int) -> Callable[[int], None]:
    def fstat(file: int) -> None:
        raise OSError(number, os.strerror(number))

    return fstat


def test_who_loses_the_lock_ends_with_a_line(run: Path) -> None:
    with holding(run, refresh=0.01) as other:
        (run / "new").write_text(replace(this_process(), host="n3").text())
        os.replace(run / "new", run / LOCK)
        assert other.wait(timeout=30) == 1 and other.stderr is not None
        said = other.stderr.read()
    assert said.startswith(f"rmfast: run.dir: {run} was taken over by process {os.getpid()} on n3")
    assert said.count("\n") == 1


def test_a_lock_is_refreshed_from_outside_the_interpreter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lock.REFRESH <= 30
    held = FolderLock(run)
    monkeypatch.setattr(lock, "REFRESH", 0.01)  # of the helper alone: the thread waits already
    helper = held._helper()
    assert helper is not None
    os.utime(run / LOCK, (0, 0))
    end = time.monotonic() + 30
    while (run / LOCK).stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert abs((run / LOCK).stat().st_mtime - time.time()) < 60
    helper.send_signal(signal.SIGTERM)  # Slurm's, for all processes of a job
    assert helper.poll() is None
    helper.communicate()  # ends what it reads, as this process's end would
    assert helper.returncode == 0
    held.release()


def test_a_folder_that_cannot_be_written_to_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "write", full)
    with pytest.raises(UserError, match=f"run.dir: cannot write to the folder {run}: No space left on device"):
        FolderLock(run)
    assert os.listdir(run) == [LOCK]
