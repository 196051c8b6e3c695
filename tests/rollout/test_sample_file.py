"""Samples on disk survive whatever ends their writer."""

import errno
import os
from pathlib import Path

import pytest

from rmfast.errors import UserError
from rmfast.rollout.sample_file import SampleFile

SETTINGS = {"n": 2, "temperature": 0.7, "stop": ("a", "b")}
MEND = "name another file"


def test_records_are_given_by_number_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with SampleFile(path, SETTINGS, MEND) as file:
        file.add(3, {"responses": ["ü", "\ud83d"]})
        file.add(1, {"responses": []})
        assert list(file.records()) == [{"responses": []}, {"responses": ["ü", "\ud83d"]}]
    with SampleFile(path, SETTINGS, MEND) as file:
        assert file.found.keys() == {1, 3}
        file.add(0, {"responses": ["x"]})
        assert [record["responses"] for record in file.records()] == [["x"], [], ["ü", "\ud83d"]]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "samples.jsonl"
    with SampleFile(path, SETTINGS, MEND) as file:
        file.add(0, {"responses": ["first"]})
        file.add(1, {"responses": ["second" * 9]})
    path.write_bytes(path.read_bytes()[:-cut])
    with SampleFile(path, SETTINGS, MEND) as file:
        assert file.found.keys() == {0}
        file.add(1, {"responses": ["again"]})
        assert [record["responses"] for record in file.records()] == [["first"], ["again"]]


def test_settings_cut_off_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    SampleFile(path, SETTINGS, MEND).__exit__(None, None, None)
    path.write_bytes(path.read_bytes()[:-3])
    with SampleFile(path, SETTINGS, MEND) as file:
        file.add(0, {})
    with SampleFile(path, SETTINGS, MEND) as file:
        assert file.found.keys() == {0}


def test_without_a_record_a_file_takes_other_settings(tmp_path: Path) -> None:
    """A run that was stopped at once, for a wrong setting, is in nobody's way."""
    path, hot = tmp_path / "samples.jsonl", SETTINGS | {"temperature": 1.0}
    SampleFile(path, SETTINGS, MEND).__exit__(None, None, None)
    with SampleFile(path, hot, MEND) as file:
        file.add(0, {})
    with pytest.raises(UserError, match="was begun with temperature 1.0, and this is 0.7"):
        SampleFile(path, SETTINGS, MEND)
    with SampleFile(path, hot, MEND) as file:
        assert file.found.keys() == {0}


def test_other_settings_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with SampleFile(path, SETTINGS, MEND) as file:
        file.add(0, {})
    with pytest.raises(UserError) as error:
        SampleFile(path, SETTINGS | {"temperature": 1.0}, MEND)
    assert str(error.value) == f"{path}: was begun with temperature 0.7, and this is 1.0; {MEND}"
    for content in ("{}\n", "a text\n", '{"prompt": "a"}\n', "[1]\n", '{"sample_settings": 3}\n'):
        path.write_text(content)
        with pytest.raises(UserError) as error:
            SampleFile(path, SETTINGS, MEND)
        assert str(error.value) == f"{path}: is no file of samples; {MEND}"
        assert path.read_text() == content


def test_a_file_without_a_record_is_begun_again(tmp_path: Path) -> None:
    """A command that failed before it drew anything may be given again with what it asked for."""
    path = tmp_path / "samples.jsonl"
    SampleFile(path, SETTINGS, MEND).__exit__(None, None, None)
    with SampleFile(path, SETTINGS | {"n": 1}, MEND) as file:
        file.add(0, {"responses": ["x"]})
    with SampleFile(path, SETTINGS | {"n": 1}, MEND) as file:
        assert list(file.records()) == [{"responses": ["x"]}]


def test_a_file_without_a_line_is_not_emptied(tmp_path: Path) -> None:
    """A person's file may have no newline: it is no line that a crash cut off."""
    path = tmp_path / "mine.txt"
    path.write_text("precious")
    with pytest.raises(UserError):
        SampleFile(path, SETTINGS, MEND)
    assert path.read_text() == "precious"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with pytest.raises(OSError) as raised, SampleFile(path, SETTINGS, MEND) as file, open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), file._file.fileno())
        file.add(0, {})
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
