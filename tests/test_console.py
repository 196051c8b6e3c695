"""A console that is lost costs what is printed, and no more."""

import os
import select
import sys
from pathlib import Path

import pytest

from rmfast.console import say, unbreakable


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_reads_is_dropped(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as console:
        monkeypatch.setattr(sys, stream, console)
        with pytest.raises(BrokenPipeError):
            print("a line", file=getattr(sys, stream), flush=True)
        with unbreakable():
            print("the first that fails, with what is left of the line before", file=getattr(sys, stream), flush=True)
            print("a later one", file=getattr(sys, stream), flush=True)
        assert getattr(sys, stream) is console
        print("nothing is left that an interpreter's end would stumble over", file=console, flush=True)


def test_a_full_disk_may_have_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as console, (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stdout", console)
        with unbreakable():
            say("lost")
            say("lost too")
            os.dup2(log.fileno(), console.fileno())
            say("kept")
    assert (tmp_path / "log").read_text() == "kept\n"


def test_a_pipe_that_does_not_wait_may_have_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(write, "w") as console, os.fdopen(read, "rb", buffering=0) as reader:
        monkeypatch.setattr(sys, "stdout", console)
        with unbreakable():
            say("x" * 100_000)  # more than a pipe holds
            while reader.read(1 << 16)[-1:] == b"x" and select.select([reader], [], [], 0)[0]:
                pass
            say("kept")
        assert reader.read(100) == b"kept\n"


def test_without_a_console_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with unbreakable():
        say("a line")
    assert sys.stdout is None and sys.stderr is None
