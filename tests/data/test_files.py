"""Files that are whole or not there."""

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from rmfast.data import files
from rmfast.data.files import (
    current,
    folder_written_whole,
    mend,
    publish,
    sweep,
    temporary_name,
    write_text,
    written_whole,
)


def test_all_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace, exchange = files.sync, files.os.replace, files._exchange
    monkeypatch.setattr(files, "sync", lambda path: (events.append(path.name), sync(path))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    monkeypatch.setattr(files, "_exchange", lambda a, b: (events.append("exchange"), exchange(a, b))[1])
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
    assert sorted(events[:2]) == ["b", "deep"] and events[2:] == ["fresh", "exchange", tmp_path.name]
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


@pytest.fixture
def two_models(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that is finished, and the one that it replaces."""
    for name in (".model.partial", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("old" if name == "model" else "new")
    return tmp_path / ".model.partial", tmp_path / "model"


def test_a_folder_is_replaced_without_an_instant_without_it(
    two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, model = two_models
    monkeypatch.setattr(files.os, "rename", None)  # no name is taken away
    publish(temporary, model)
    assert os.listdir(model.parent) == ["model"] and (model / "weights").read_text() == "new"


def test_where_names_cannot_be_exchanged_the_old_folder_is_found_until_the_new_one_is(
    two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, model = two_models
    found, rename = [], os.rename

    def killed(one: Path, other: Path) -> None:
        found.append((current(model) / "weights").read_text())
        if other == model:
            raise KeyboardInterrupt
        rename(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_exchange", lambda one, other: False)
        patch.setattr(files.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(temporary, model)
        assert not model.exists() and (current(model) / "weights").read_text() == "old"
        patch.setattr(files.os, "rename", rename)
        mend(model.parent, "model")
        assert (model / "weights").read_text() == "old"
        publish(temporary, model)
    assert found == ["old", "old"]
    assert os.listdir(model.parent) == ["model"] and (current(model) / "weights").read_text() == "new"
    (model.parent / ".model.old").mkdir()  # of a crash behind both renames
    mend(model.parent, "model")
    assert os.listdir(model.parent) == ["model"] and (model / "weights").read_text() == "new"
    (model.parent / ".notes.old").mkdir()  # a person's
    mend(model.parent, "model")
    assert (model.parent / ".notes.old").is_dir() and not (model.parent / "notes").exists()


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(
    two_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, model = two_models
    rename = os.rename

    def fails(one: Path, other: Path) -> None:
        if one == temporary:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(one, other)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(files.os, "rename", fails)
    with pytest.raises(OSError, match="Input/output"):
        publish(temporary, model)
    assert (model / "weights").read_text() == "old"


def test_a_folder_that_the_disk_did_not_take_is_removed_and_one_that_failed_a_check_stays(tmp_path: Path) -> None:
    for error, left in ((OSError(errno.ENOSPC, "full"), []), (KeyError(), [".model.partial"])):
        with pytest.raises(type(error)) as raised, folder_written_whole(tmp_path / "model") as temporary:
            temporary.mkdir()
            raise error
        assert os.listdir(tmp_path) == left
    assert isinstance(raised.value, KeyError)
    with folder_written_whole(tmp_path / "model") as temporary:
        temporary.mkdir()
    assert os.listdir(tmp_path) == ["model"]


def test_errors_of_a_file_name_it_by_its_last_name(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, "full"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "full", str(temporary_name(tmp_path / "a"))),
    ):
        with pytest.raises(OSError) as raised, written_whole(tmp_path / "a"):
            raise error
        assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as missing, written_whole(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert missing.value.filename == str(tmp_path / "b")


def test_what_the_dead_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()

    def of(name: str, pid: int = os.getpid(), host: str = "") -> Path:
        mine = temporary_name(tmp_path / name).name
        return tmp_path / mine.replace(f".{name}.", f".{name}.{host}").replace(f"-{os.getpid()}.", f"-{pid}.")

    mine, dead, elsewhere, old = of("a"), of("b", child.pid), of("c", host="n2"), of("d", host="n2")
    (tmp_path / "whole").mkdir()
    built = of("cache", child.pid)
    others = [tmp_path / name for name in (".step-3.0.partial", ".model.partial", ".0123456789abcdef-" + "0" * 32)]
    built.mkdir()
    for file in (mine, dead, elsewhere, old, built / "tokens.npy", *others):
        file.touch()
    for file in (old, *others):
        os.utime(file, (0, time.time() - 90_000))
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, elsewhere, tmp_path / "whole", *others}
    sweep(tmp_path, also=r"\.[0-9a-f]{16}-[0-9a-f]{32}")
    assert set(tmp_path.iterdir()) == {mine, elsewhere, tmp_path / "whole", *others[:2]}
