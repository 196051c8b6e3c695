"""What torch finds in the environment as it is imported."""

import os
import subprocess
import sys

import pytest

from rmfast.environment import ALLOCATOR, prepare
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
    words = {"rmfast.train": ["--model.path", "none", "--data.train", "none"], "rmfast.cli": ["data", "report", "none"]}
    code = f"{WATCHED}\nfrom {start} import main\nraise SystemExit(main({words[start]}))"
    users = {name: value for name, value in environment().items() if name not in ALLOCATOR}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=users)
    assert done.returncode == 2 and "imports torch" in done.stdout, done.stderr
