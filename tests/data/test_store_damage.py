"""A damaged store is a cache: it is named and built again, with the same arrays."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from rmfast.data import array_file, store
from rmfast.data.chunk import DTYPES
from rmfast.data.store import TokenStore, build_store
from rmfast.errors import UserError
from tests.data.test_store import ROWS, assert_same, no_tokenising, write

FILES = [*(f"{name}.npy" for name in DTYPES), "meta.json"]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)


def flip_head(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


HARMS = (flip, flip_head, cut, empty, Path.unlink)


@pytest.fixture
def built(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., TokenStore]:
    """Builds, or opens, the store of the same rows; in memory, for a file that is mapped must not be cut."""
    source = write(tmp_path / "a.jsonl", ROWS)

    def build(**more: Any) -> TokenStore:
        made = build_store(source, tokenizer, tmp_path / "cache", **more)
        return replace(made, **{name: np.array(getattr(made, name)) for name in DTYPES})

    return build


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_whichever_file_is_damaged_the_store_is_built_again(
    built: Callable[..., TokenStore],
    tmp_path: Path,
    harm: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = built()
    folder = tmp_path / "cache" / first.meta["key"]
    before = {name: (folder / name).read_bytes() for name in FILES}
    for name in FILES:
        harm(folder / name)
        assert_same(built(), first)
        printed = capsys.readouterr().out
        assert printed.startswith(f"{folder}: damaged data cache (") and printed.endswith("): it is built again\n")
        assert printed.count("\n") == 1
        assert {name: (folder / name).read_bytes() for name in FILES} == before
        assert list((tmp_path / "cache").iterdir()) == [folder]  # nothing of the old one stays
    built()
    assert capsys.readouterr().out == ""


def test_arrays_that_changed_places_are_told(
    built: Callable[..., TokenStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = built()
    folder = tmp_path / "cache" / first.meta["key"]
    better, worse = folder / "better.npy", folder / "worse.npy"
    one, other = better.read_bytes(), worse.read_bytes()
    assert one != other and len(one) == len(other)
    better.write_bytes(other), worse.write_bytes(one)
    assert_same(built(), first)
    assert "better.npy is not what was written" in capsys.readouterr().out


def test_an_edited_count_is_told(
    built: Callable[..., TokenStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = built()
    file = tmp_path / "cache" / first.meta["key"] / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_id": 5}))
    assert built().meta["max_id"] == first.meta["max_id"]
    assert "its checksum differs" in capsys.readouterr().out


def test_one_process_of_a_machine_reads_all_of_it(
    built: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    first = built()
    real = array_file.map_array

    def noted(path: Path, dtype: type, checksum: array_file.Checksum | None) -> Any:
        read.extend([path.name] if checksum is not None else [])
        return real(path, dtype, checksum)

    monkeypatch.setattr(store, "map_array", noted)
    assert_same(built(verify=False), first)
    assert read == []
    built()
    assert sorted(read) == sorted(set(FILES) - {"meta.json"})


def test_a_store_of_an_earlier_version_is_opened(
    built: Callable[..., TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built()
    file = tmp_path / "cache" / first.meta["key"] / "meta.json"
    values = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("checksums", "crc32")}
    file.write_text(json.dumps(values))
    no_tokenising(monkeypatch)
    again = built()
    assert_same(again, first)
    assert again.meta == first.meta


def test_a_full_disk_leaves_nothing(
    built: Callable[..., TokenStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array_file.ArrayFile, "append", full)
    with pytest.raises((OSError, UserError), match="No space left on device.*cache|cache.*: No space left on device"):
        built()
    assert list((tmp_path / "cache").iterdir()) == []
