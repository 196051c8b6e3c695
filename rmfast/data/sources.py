"""Source strings -> rows, streamed: files, folders and `datasets`, with a hash of what they hold.

A source is `PATH[:CONFIG][#SPLIT]`. PATH is a file (.jsonl, .json with a list or lines, either of them .gz or .zst, or
.parquet), a folder of such files (sorted, recursive), a folder written by `datasets`' save_to_disk, or a hub name. A
folder's configurations and splits are what its dataset card says, or else the names of its files and folders.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from rmfast.data import unpack
from rmfast.data.arrow import arrow_rows, batch_rows
from rmfast.data.card import folder_configs
from rmfast.data.example import BadRow
from rmfast.data.jsonfile import Rows, json_rows
from rmfast.data.splits import UNNAMED, choose_config, choose_split
from rmfast.data.unpack import NOT_READ, SUFFIXES, suffix_of
from rmfast.errors import UserError, first_line
from rmfast.paths import usable_path

if TYPE_CHECKING:
    import datasets

Row = tuple[str, int, dict[str, Any] | BadRow]
"""File label, 1-based row in it, and the row or why it cannot be read."""

_HUB_ROWS = 1024
_SAVED = ("dataset_dict.json", "state.json")  # one of them is in the folder of a saved dataset
_POINTER_BYTES = 1024
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def read_rows(source: str, default_split: str = "train") -> Iterator[Row]:
    """Stream the rows of a source, bad ones included, holding one block of a file at a time.

    Args:
        default_split: which to take where the source names none (see `rmfast.data.splits`).

    Raises:
        UserError: nothing is there, there are several things to choose from, or a file cannot be read whole.
    """
    found = _locate(source, default_split)
    if found.kind == "files":
        for path in found.files:
            for number, row in _file_rows(path):
                yield found.label(path), number, row
        return
    if found.kind == "saved":
        rows: Iterator[dict[str, Any] | BadRow] = (row for path in found.files for _, row in arrow_rows(path))
    else:
        rows = batch_rows(found.root, _hub_split(found, default_split)[1].with_format("arrow").iter(_HUB_ROWS))
    for number, row in enumerate(rows, start=1):
        yield found.root, number, row


def content_key(source: str, default_split: str = "train") -> str:
    """sha256 of what `read_rows` would read: of file bytes (streamed), or of a hub dataset's fingerprint."""
    found = _locate(source, default_split)
    digest = hashlib.sha256(found.kind.encode())
    if found.kind == "hub":
        digest.update(_hub_split(found, default_split)[1]._fingerprint.encode())
    for path in found.files:
        # In a folder the name says where a row is from; a lone file may be renamed, but not change its kind.
        name = suffix_of(path) if path == Path(found.root) else path.relative_to(found.root).as_posix()
        digest.update(f"\0{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(unpack.CHUNK):
                digest.update(block)
    return digest.hexdigest()


def split_note(source: str, default_split: str = "train") -> str:
    """Where a source names no split and one of another name than the default is read, a line that says so; else empty.

    Raises:
        UserError: as `read_rows`.
    """
    found = _locate(source, default_split)
    if found.split is not None:
        return ""
    split = _hub_split(found, default_split)[0] if found.kind == "hub" else found.taken
    return "" if split in ("", default_split) else f"split {split} is read, as there is none called {default_split}"


def source_root(source: str) -> str:
    """The source without configuration and split and without trailing slashes: every label of `read_rows` begins so."""
    return _parts(source)[0]


@dataclass(frozen=True)
class _Found:
    kind: Literal["files", "saved", "hub"]
    root: str
    files: tuple[Path, ...] = ()
    config: str | None = None
    split: str | None = None  # that is asked for
    taken: str = ""  # that is read; "" for none, and for a hub name

    def label(self, path: Path) -> str:
        return self.root if path == Path(self.root) else f"{self.root}/{path.relative_to(self.root).as_posix()}"


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """Path or hub name, configuration and split. A path that is there may hold the marks of both in its name."""
    name, mark, split = source.rpartition("#")
    whole = [(source, None)] + ([(name, split)] if mark else [])
    readings: list[tuple[str, str | None, str | None]] = []
    for text, asked in whole:
        path, mark, config = text.rpartition(":")
        readings += [(text, None, asked)] + ([(path, config, asked)] if mark and "#" not in config else [])
    there = [reading for reading in readings if reading[0] and Path(reading[0]).exists()]
    # The longest path that is there; of a name that is not, the reading with most parts.
    root, config_, split_ = max(there, key=lambda reading: len(reading[0])) if there else readings[-1]
    return root.rstrip("/") or root, config_, split_


def _locate(source: str, default_split: str) -> _Found:
    root, config, split = _parts(source)
    try:
        path = Path(usable_path(root))
    except ValueError as error:
        raise UserError(f"the path in source {source!r} {error}") from None
    if path.is_file():
        if asked := ("" if config is None else f":{config}") + ("" if split is None else f"#{split}"):
            raise UserError(f"{root} is one file and has no configuration or split: leave out {asked}")
        return _Found("files", root, _readable(root, [path]))
    if not path.is_dir():
        if _HUB_NAME.fullmatch(root) is None or root.endswith(SUFFIXES + NOT_READ):
            raise UserError(f"no such file or folder: {root}")
        return _Found("hub", root, (), config, split)
    saved = _saved_splits(path)
    if not saved and (inner := sorted(file.parent.name for mark in _SAVED for file in path.glob(f"*/{mark}"))):
        raise UserError(
            f"{root} is no dataset but holds what save_to_disk wrote ({', '.join(inner)}): name one, as in "
            f"{root}/{inner[0]}"
        )
    configs, default = ({UNNAMED: saved}, None) if saved else folder_configs(path)
    if not configs:
        raise UserError(f"{root} holds no file that rmfast reads ({', '.join(SUFFIXES)})")
    config, splits = choose_config(root, configs, config, default)
    where = root if config == UNNAMED else f"{root}:{config}"
    taken = choose_split(where, splits, split, default_split)
    files = [path / name for name in splits[taken]]
    if saved:
        return _Found("saved", root, tuple(files), config, split, taken)
    return _Found("files", root, _readable(where, files), config, split, taken)


def _readable(where: str, files: list[Path]) -> tuple[Path, ...]:
    """The files, if all of them can be read and none is there in two kinds."""
    kept: dict[Path, Path] = {}
    for file in files:
        suffix = suffix_of(file)
        if suffix in NOT_READ:
            raise UserError(f"{file}: CSV is not read, as its values have no types: convert it to .jsonl or .parquet")
        if not suffix:
            raise UserError(f"{file}: unknown kind of file; rmfast reads {', '.join(SUFFIXES)}")
        if file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(b"version https://git-lfs"):
            raise UserError(f"{file} is a Git LFS pointer, not the data: run `git lfs pull` there")
        other = kept.setdefault(file.with_name(file.name.removesuffix(suffix)), file)
        if other != file:
            raise UserError(f"{where} holds {other.name} and {file.name}, the same rows by their names: remove one")
    return tuple(files)


def _saved_splits(folder: Path) -> dict[str, list[PurePath]]:
    """The files of each split of what save_to_disk wrote ("" for a dataset without splits); none in another folder."""
    try:
        if (folder / "dataset_dict.json").is_file():
            names = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return {name: [name / file for file in _saved_files(folder / name)] for name in names}
        if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            return {"": _saved_files(folder)}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: its dataset_dict.json or a state.json is damaged; save the dataset again") from None
    return {}


def _saved_files(folder: Path) -> list[PurePath]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return [PurePath(file["filename"]) for file in state["_data_files"]]


def _hub_split(found: _Found, default_split: str) -> tuple[str, "datasets.Dataset"]:
    """The split that is read, and its name."""
    import datasets  # takes a second to import, and files never need it
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are many lines; what matters is in our one
    where = found.root if found.config is None else f"{found.root}:{found.config}"
    try:
        splits = datasets.load_dataset(found.root, found.config)
    except Exception as error:  # every kind comes out of the hub's and the builders' code
        if configs := _hub_configs(found.root, error):
            choose_config(found.root, configs, found.config)
        raise UserError(
            f"{where}: no such file, and cannot load a dataset of that name: {first_line(error)}"
        ) from error
    taken = choose_split(where, splits, found.split, default_split)
    return taken, splits[taken]


def _hub_configs(name: str, error: Exception) -> dict[str, None]:
    """The configurations of a hub dataset that could not be loaded, if that is because none of them was named."""
    import datasets

    if not isinstance(error, ValueError):
        return {}
    try:
        return dict.fromkeys(datasets.get_dataset_config_names(name))
    except Exception:  # then the first error says why
        return {}


def _file_rows(path: Path) -> Rows:
    suffix = suffix_of(path)
    return arrow_rows(path) if suffix == ".parquet" else json_rows(path, may_be_list=not suffix.startswith(".jsonl"))
