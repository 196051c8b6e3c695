"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from rmfast.data import files
from rmfast.data.files import publish, write_text, written_whole


def test_all_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = files.sync, files.os.replace
    monkeypatch.setattr(files, "sync", lambda path: (events.append(path.name), sync(path))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run" / "a.json", "new")
    assert events[1:] == ["rename", "run"] and (tmp_path / "run" / "a.json").read_text() == "new"
    # Of this process alone: another may write the same file now.
    assert events[0].startswith(".a.") and events[0].endswith(f"-{os.getpid()}.partial.json")
    events.clear()
    for name in ("old", "fresh"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "b").write_text(name)
    publish(tmp_path / "fresh", tmp_path / "old")
    assert sorted(events[:2]) == ["b", "deep"] and events[2:] == ["fresh", "rename", tmp_path.name]
    assert (tmp_path / "old" / "deep" / "b").read_text() == "fresh" and not (tmp_path / "fresh").exists()


def test_sync_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(files.os, "fsync", seen.append)
    write_text(tmp_path / "a", "x")
    assert len(seen) == 2


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    write_text(file, "old")
    with pytest.raises(KeyError), written_whole(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
