"""The command line where nobody reads what it prints."""

import os
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import pytest

from rmfast.cli import main
from tests.commands.rows import strict_json, write_models


@pytest.fixture
def closed() -> Iterator[TextIOWrapper]:
    """A pipe whose reader has gone, as in `rmfast ... | head -n 0`."""
    read, write = os.pipe()
    os.close(read)
    with TextIOWrapper(os.fdopen(write, "wb")) as out:
        yield out


def test_a_reader_that_goes_ends_it_quietly(
    closed: TextIOWrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_models(tmp_path)
    capfd.readouterr()
    words = ["eval", str(folder / "one"), "--data", str(folder / "pairs.jsonl"), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.stdout", closed)
    assert main(words) == 141  # 128 + SIGPIPE
    assert strict_json((tmp_path / "out.json").read_text())["rows"] == 10
    print("more", file=closed)
    closed.flush()  # as the interpreter does at its end: nothing is left that could fail
    assert not capfd.readouterr().err


def test_what_is_printed_without_a_flush_counts_too(closed: TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.commands.plan.plan", lambda options: print("short"))
    monkeypatch.setattr("sys.stdout", closed)
    assert main(["plan", "x.yaml", "--gpus", "1"]) == 141


def test_a_closed_output_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.commands.plan.plan", lambda options: print("unheard"))
    monkeypatch.setattr("sys.stdout", None)
    assert main(["plan", "x.yaml", "--gpus", "1"]) == 0


def test_another_pipe_that_breaks_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(options: object) -> None:
        raise BrokenPipeError("a judge's connection")

    monkeypatch.setattr("rmfast.commands.plan.plan", breaks)
    with pytest.raises(BrokenPipeError, match="judge"):
        main(["plan", "x.yaml", "--gpus", "1"])
