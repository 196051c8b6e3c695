"""What torch finds in the environment as it is imported."""

import os
import subprocess
import sys

import pytest

from rmfast.environment import ALLOCATOR, end_with_launcher, prepare
from tests.runs import environment

WATCHED = """
import builtins, os
plain = builtins.__import__

def watched(name, *more, **options):
    if name == "torch":
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        print("imports torch")
    return plain(name, *more, **options)

builtins.__import__ = watched
"""


@pytest.mark.parametrize("name", ALLOCATOR)
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known in ALLOCATOR:
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:512")
    prepare()
    assert {known: os.environ[known] for known in ALLOCATOR if known in os.environ} == {name: "max_split_size_mb:512"}


@pytest.mark.parametrize("start", ["rmfast.train", "rmfast.cli"])
def test_segments_of_gpu_memory_can_grow_in_runs_and_commands(start: str) -> None:
    """It is set once torch is imported, for which a config or options are read first."""
    words = {
        "rmfast.train": ["--model.path", "none", "--data.train", "none"],
        "rmfast.cli": ["score", "none", "--data", "none", "--out", "none.jsonl"],
    }
    code = f"{WATCHED}\nfrom {start} import main\nraise SystemExit(main({words[start]}))"
    users = {name: value for name, value in environment().items() if name not in ALLOCATOR}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=users)
    assert done.returncode == 2 and "imports torch" in done.stdout, done.stderr


CHILD = """
import time
from rmfast import environment
environment.POLL = 0.01
environment.end_with_parent("the parent is gone")
print("on", flush=True)
time.sleep(60)
"""
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); sys.stdin.read()"


def test_a_process_ends_with_its_parent() -> None:
    words, pipe = [sys.executable, "-c", PARENT, CHILD], subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        assert parent.stdout.readline() == "on\n"
        parent.kill()
        assert parent.stderr.read() == "rmfast: the parent is gone\n"  # ends with the child, which has it open


def test_a_process_whose_parent_has_ended_before_ends_too() -> None:
    code = CHILD.replace('gone")', 'gone", parent=2**22 + 1)')  # a number that no process has
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stderr == "rmfast: the parent is gone\n"


def test_ranks_end_with_torchrun_and_other_processes_may_outlive_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str | None] = []
    monkeypatch.setattr("rmfast.environment.end_with_parent", lines.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    end_with_launcher()
    assert not lines
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        end_with_launcher()
    said, silent = lines
    assert said is not None and said.startswith("torchrun has ended") and silent is None
