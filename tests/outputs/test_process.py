"""Processes are told apart by machine, its start, their number and when they began."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from rmfast.outputs import process
from rmfast.outputs.process import launcher, left_behind, read_process, tag, this_process
from tests.runs import environment, torchrun


@pytest.fixture
def ended() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as child:
        child.wait()
    return child.pid


def test_a_process_is_read_as_it_was_written_and_lives_until_its_end(ended: int) -> None:
    here = this_process()
    assert read_process(here.text()) == here and here.same(here) and not here.is_gone(here)
    assert replace(here, pid=ended).is_gone(here)
    parent = replace(here, pid=os.getppid(), began=process._began(os.getppid()))
    assert not parent.is_gone(here) and not parent.same(here)


def test_a_number_that_another_process_has_now_is_not_the_same_process() -> None:
    here = this_process()
    assert here.began is not None
    assert replace(here, began=here.began - 1).is_gone(here)


@pytest.mark.parametrize("change", [{"host": "n2"}, {"boot": "another start"}, {"space": "7"}])
def test_of_another_machine_start_or_container_nothing_is_known(ended: int, change: dict[str, str]) -> None:
    here = this_process()
    other = replace(here, pid=ended, **change)
    assert not other.is_gone(here) and replace(here, pid=ended).is_gone(here)


def test_a_zombie_has_ended() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert replace(this_process(), pid=child.pid, began=process._began(child.pid)).is_gone(this_process())


def test_a_later_start_follows_an_earlier_one_of_the_same_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not this_process().followed_by(replace(this_process(), restarts=1))  # no job
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    first = this_process()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    second = this_process()
    assert first.followed_by(second) and not second.followed_by(first) and not second.followed_by(second)
    assert not first.followed_by(replace(second, job="13"))
    assert str(second) == f"process {os.getpid()} on {second.host}, job 12 restart 1, since {second.since}"


def test_who_a_torchrun_starts_again_follows_what_it_started_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launcher() == ""  # not started by one
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    by_this, here = launcher(), this_process()
    assert len(by_this) == 16 and launcher() == by_this
    before = replace(here, launchers=("another", by_this))
    assert before.followed_by(replace(here, launchers=(by_this, "a node that joined")))
    assert not before.followed_by(replace(here, launchers=("a third",)))  # though its run has the same id, "none"
    assert not before.followed_by(here) and not here.followed_by(before) and not here.followed_by(here)
    assert read_process(before.text()) == before
    with monkeypatch.context() as patch:  # another parent of the same number
        patch.setattr(process, "_began", lambda pid: 7)
        assert launcher() not in ("", by_this)
    monkeypatch.setattr(process, "PROC", Path("/nowhere"))  # where a number is all that is known
    assert launcher() == ""


def test_a_lock_of_an_earlier_version_names_no_launchers() -> None:
    here = this_process()
    values = {name: value for name, value in json.loads(here.text()).items() if name != "launchers"}
    assert read_process(json.dumps(values)) == here


@pytest.mark.slow
def test_torchrun_starts_all_its_restarts_itself(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "import os, sys\nfrom rmfast.outputs.process import launcher\n"
        "count = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "print(count, launcher(), file=open(sys.argv[1], 'a'))\nsys.exit(count == '0')\n"
    )
    words = [*torchrun(1), "--max-restarts", "1", str(script), str(tmp_path / "said")]
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=120)
    first, second = (line.split() for line in (tmp_path / "said").read_text().splitlines())
    assert (first[0], second[0]) == ("0", "1") and first[1] == second[1] and len(first[1]) == 16


@pytest.mark.parametrize("text", ["", "process 7 on n1, since 2025-01-01\n", "[]", '{"host": "a"}', "[" * 9999])
def test_other_text_names_no_process(text: str) -> None:
    assert read_process(text) is None


def test_a_name_tells_whether_its_writer_has_ended(ended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    here, mine = this_process(), f".a.{tag()}.partial.json"
    dead = mine.replace(f"-{os.getpid()}.", f"-{ended}.")
    assert not left_behind(mine) and left_behind(dead)
    assert not left_behind(".model.partial") and not left_behind(dead.replace(".a.", ".a.n2"))
    monkeypatch.setattr(process, "PROC", Path("/nowhere"))  # as on a system without it
    assert left_behind(f".a.{tag()}.partial".replace(f"-{os.getpid()}.", f"-{ended}."))
    hidden = replace(here, boot="", space="")
    assert not hidden.is_gone(this_process()) and replace(hidden, pid=ended).is_gone(this_process())
