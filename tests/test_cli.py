"""The command line: what its options start, what help imports, and where nobody reads what it prints."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

import pytest

from rmfast import train
from rmfast.cli import main, parser
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["score", "m", "--data", "a\0b", "--out", "o"],
            r"argument --data: 'a\x00b' holds a character that no path can have",
        ),
        (["score", "", "--data", "d", "--out", "o"], "argument CKPT: is empty; give a path"),
        (["plan", "c.yaml", "--gpus", "9" * 5000], "argument --gpus: invalid int value: '" + "9" * 299 + "..."),
        (["plan", "c.yaml", "--gpus", "2000000"], "argument --gpus: 2000000 is above 1,048,576"),
        (["plan", "c.yaml", "--gpus", "1_0"], "argument --gpus: invalid int value: '1_0'"),
        (["eval", "m", "--data", "d", "--timeout", "1e300"], "argument --timeout: 1e300 is above 1,000,000,000"),
        (["score\x1b[31m"], r"invalid choice: 'score\x1b[31m'"),
    ],
)
def test_odd_words_end_in_a_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    line = capsys.readouterr().err.splitlines()[-1]
    assert said in line and line.isprintable()


def test_what_is_printed_without_a_flush_counts_too(closed: TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmfast.commands.plan.plan", lambda options: print("short"))
    monkeypatch.setattr("sys.stdout", closed)
    assert main(["plan", "x.yaml", "--gpus", "1"]) == 141


def test_the_help_of_training_ends_quietly_too(closed: TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", closed)
    assert train.main(["--help"]) == 0
    print("more", file=closed)
    closed.flush()


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


def leaves(command: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of commands that do something."""
    inner = [a for a in command._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield command
    for choice in (choice for action in inner for choice in action.choices.values()):
        yield from leaves(choice)


def test_every_command_names_a_function_that_is_there() -> None:
    names = [str(command.get_default("run")) for command in leaves(parser())]
    assert len(set(names)) == len(names) == 11
    for module, function in (name.split(".") for name in names):
        assert callable(getattr(import_module(f"rmfast.commands.{module}"), function))


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = "import sys; from rmfast.cli import parser; parser().format_help(); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "triton", "pandas", "matplotlib"} & set(done.stdout.split())
