"""An output is told from the inputs whatever names lead to either, and before it is written."""

import os
from pathlib import Path

import pytest

from rmfast.errors import UserError
from rmfast.outputs.overlap import Input, Output, check_overlap, identity


def refused(output: Path, given: Path, *, replaced: bool = True) -> str:
    """The line that refuses the output; "" for none."""
    try:
        check_overlap([Output("--out", output, "name another file", replaced)], [Input("--data", given)])
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text("{}\n")
    return path


def test_other_names_of_an_input_are_the_input(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soft").symlink_to(rows)
    os.link(rows, tmp_path / "hard")
    (tmp_path / "folder").symlink_to(rows.parent)
    monkeypatch.chdir(rows.parent)
    names = [rows, tmp_path / "soft", tmp_path / "hard", tmp_path / "folder" / "rows.jsonl", Path("../data/rows.jsonl")]
    for output in names:
        for given in names:
            line = refused(output, given)
            assert line == f"--out: {output} would overwrite --data, {given}; name another file"


def test_other_case_is_the_input_where_the_system_ignores_it(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **more: stat(path.with_name(path.name.lower()), **more))
    assert "would overwrite" in refused(rows.with_name("ROWS.jsonl"), rows)


def test_what_is_inside_an_input_folder_is_refused_also_where_it_is_not_there_yet(rows: Path, tmp_path: Path) -> None:
    for output in (rows.parent / "new.json", rows.parent / "a" / "b.json"):
        assert "which is only read" in refused(output, rows.parent)
    (tmp_path / "folder").symlink_to(rows.parent)
    assert "which is only read" in refused(tmp_path / "folder" / "new.json", rows.parent)
    os.link(rows, tmp_path / "hard")  # outside, and the file inside
    assert "would overwrite" in refused(tmp_path / "hard", rows.parent)


def test_a_folder_that_is_replaced_takes_no_input_with_it(rows: Path) -> None:
    assert f"holds --data, {rows}" in refused(rows.parent, rows)
    assert refused(rows.parent, rows, replaced=False) == ""


def test_neighbours_pipes_and_what_is_not_there_are_no_inputs(rows: Path, tmp_path: Path) -> None:
    assert refused(rows.with_name("rows.json"), rows) == ""
    assert refused(tmp_path / "none", tmp_path / "none") == ""
    assert refused(Path("/dev/null"), Path("/dev/null")) == ""
    assert identity(Path("a\0b")) is None and identity(Path("x" * 5000)) is None
