"""Source strings -> rows, streamed: files, folders and `datasets`, with a hash of what they hold.

A source is a file (.jsonl, .json with a list or lines, either of them .gz or .zst, or .parquet), a folder of such
files (sorted, recursive), a folder written by `datasets`' save_to_disk, or a hub name `NAME[:CONFIG]`. `#SPLIT` after
it names a split. Where there are several and none is named, the caller's default is taken; in a plain folder those are
files or subfolders whose name begins with train, test, validation, valid, val, dev or eval.
"""

import codecs
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import pyarrow
import pyarrow.parquet
import zstandard

from rmfast.data.example import NOT_JSON, NOT_OBJECT, NOT_UTF8, BadRow
from rmfast.errors import UserError

if TYPE_CHECKING:
    import datasets

Row = tuple[str, int, dict[str, Any] | BadRow]
"""File label, 1-based row in it, and the row or why it cannot be read."""

SUFFIXES = (".jsonl", ".json", ".parquet", *(kind + pack for kind in (".jsonl", ".json") for pack in (".gz", ".zst")))
_HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(:(?P<config>[\w.-]+))?")
_SPLIT_NAME = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])")
_CHUNK = 1 << 20


def read_rows(source: str, default_split: str = "train") -> Iterator[Row]:
    """Stream the rows of a source, bad ones included, holding one block of a file at a time.

    Raises:
        UserError: nothing is there, or a file ends early or is damaged.
    """
    found = _locate(source, default_split)
    if found.kind == "files":
        for path in found.files:
            for number, row in _file_rows(path):
                yield found.label(path), number, row
    else:
        for number, row in enumerate(_dataset(found), start=1):
            yield found.root, number, row


def content_key(source: str, default_split: str = "train") -> str:
    """sha256 of what `read_rows` would read: of file bytes (streamed), or of a hub dataset's fingerprint."""
    found = _locate(source, default_split)
    digest = hashlib.sha256(found.kind.encode())
    if found.kind == "hub":
        digest.update(_dataset(found)._fingerprint.encode())
    for path in found.files:
        # In a folder the name says where a row came from; a lone file may be renamed, but not change its kind.
        name = _suffix(path) if path == Path(found.root) else path.relative_to(found.root).as_posix()
        digest.update(f"\0{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
    return digest.hexdigest()


def source_root(source: str) -> str:
    """The source without its split and without trailing slashes: every label that `read_rows` gives begins so."""
    return _split_off(source)[0]


@dataclass(frozen=True)
class _Found:
    kind: Literal["files", "saved", "hub"]
    root: str
    files: tuple[Path, ...] = ()
    split: str | None = None
    config: str | None = None

    def label(self, path: Path) -> str:
        return self.root if path == Path(self.root) else f"{self.root}/{path.relative_to(self.root).as_posix()}"


def _split_off(source: str) -> tuple[str, str | None]:
    if "#" in source and not Path(source).exists():  # a file's own name may hold a #
        source, split = source.rsplit("#", 1)
        return source.rstrip("/") or source, split
    return source.rstrip("/") or source, None


def _locate(source: str, default_split: str) -> _Found:
    root, split = _split_off(source)
    path = Path(root)
    if path.is_file():
        if split is not None:
            raise UserError(f"{root} is one file and has no split {split!r}: leave out #{split}")
        if not _suffix(path):
            raise UserError(f"{root}: unknown kind of file; rmfast reads {', '.join(SUFFIXES)}")
        return _Found("files", root, (path,))
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            try:
                names = list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{root}: its dataset_dict.json is damaged; save the dataset again") from None
            chosen = split or default_split
            if chosen not in names:
                raise UserError(f"{root} has no split {chosen!r}; it has {', '.join(names)}: name one with #SPLIT")
            return _Found("saved", root, _arrow_files(path / chosen), chosen)
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            if split is not None:
                raise UserError(f"{root} is one dataset and has no split {split!r}: leave out #{split}")
            return _Found("saved", root, _arrow_files(path))
        return _Found("files", root, _folder_files(path, split, default_split))
    hub = _HUB_NAME.fullmatch(root)
    if hub is None or root.endswith(SUFFIXES) or root.startswith((".", "/")):
        raise UserError(f"no such file or folder: {root}")
    return _Found("hub", root, (), split or default_split, hub["config"])


def _suffix(path: Path) -> str:
    """The known suffix of a file, both parts of it where it is packed, or ""."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")


def _arrow_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.arrow")))


def _folder_files(folder: Path, split: str | None, default_split: str) -> tuple[Path, ...]:
    paths = (path for path in folder.rglob("*") if path.is_file() and _suffix(path))
    names = {path: path.relative_to(folder).parts for path in paths}
    files = sorted((p for p, parts in names.items() if not any(part[0] == "." for part in parts)), key=names.get)  # type: ignore[arg-type]
    if not files:
        raise UserError(f"{folder} holds no file that rmfast reads ({', '.join(SUFFIXES)})")
    splits: dict[str, list[Path]] = {}
    for path in files:
        matches = [match[1] for part in names[path] if (match := _SPLIT_NAME.match(part))]
        splits.setdefault(matches[0] if matches else "", []).append(path)
    if split is None and len(splits.keys() - {""}) < 2:
        return tuple(files)  # there is nothing to choose from
    chosen = split or default_split
    if not chosen or chosen not in splits:
        known = ", ".join(sorted(splits.keys() - {""})) or "none"
        raise UserError(f"{folder} has no split {chosen!r} among its files (splits: {known}): name one with #SPLIT")
    return tuple(splits[chosen])


def _dataset(found: _Found) -> "datasets.Dataset":
    import datasets  # takes a second to import, and files never need it
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are many lines; what matters stands in our one
    try:
        if found.kind == "hub":
            name = found.root.removesuffix(f":{found.config}")
            return datasets.load_dataset(name, found.config, split=found.split)
        folder = Path(found.root) / (found.split or "")
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # every kind comes out of the hub's and the builders' code
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "no such file, and cannot load a dataset of that name" if found.kind == "hub" else "cannot be loaded"
        raise UserError(f"{found.root}: {what} (split {found.split!r}): {cause}") from error


def _file_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    suffix = _suffix(path)
    if suffix == ".parquet":
        return _parquet_rows(path)
    chunks = _chunks(path)
    if suffix.startswith(".json") and not suffix.startswith(".jsonl"):
        head = start = b""
        while (len(head) < len(codecs.BOM_UTF8) or not start) and (block := next(chunks, b"")):
            head += block
            start = head.removeprefix(codecs.BOM_UTF8).lstrip()
        chunks = itertools.chain([head], chunks)
        if start.startswith(b"["):
            return _list_rows(path, chunks)
    return _line_rows(chunks)


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks that are never empty."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    while block := unpacked.read(_CHUNK):
                        yield block
            elif path.suffix == ".zst":
                yield from _unpack_zst(file)
            else:
                while block := file.read(_CHUNK):
                    yield block
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _unpack_zst(file: BinaryIO) -> Iterator[bytes]:
    """All frames of a .zst file. The library's own reader takes a truncated frame for a short one."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    while block := file.read(_CHUNK >> 8):  # small, because all that a block unpacks to comes at once
        while block:
            frame = frame or unpacker.decompressobj()
            if unpacked := frame.decompress(block):
                yield unpacked
            block = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame is incomplete")


def _line_rows(chunks: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    for number, line in enumerate(_lines(chunks), start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line and not line.isspace():
            yield number, _parse_line(line)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Split at newlines only: JSON strings may hold other line separators of Unicode."""
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *lines = chunk.split(b"\n")
        pieces.append(first)
        if lines:
            yield b"".join(pieces)
            yield from lines[:-1]
            pieces = [lines[-1]]
    yield b"".join(pieces)


def _parse_line(line: bytes) -> dict[str, Any] | BadRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(NOT_UTF8, f"{error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return BadRow(NOT_JSON, f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested too deep
        return BadRow(NOT_JSON, str(error))
    return _object(value)


def _object(value: Any) -> dict[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow(NOT_OBJECT, f"the row is {type(value).__name__}, not an object")


def _list_rows(path: Path, chunks: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    """The items of one JSON list, without ever holding more than about two of them and a block."""
    # Bytes that are not UTF-8 become lone surrogates, which the tokeniser reports for the row that holds them.
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    text, at, number = "", 0, 0
    opened = ended = False
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == ("," if opened else "[")):
            opened |= text[at] == "["
            at += 1
        if text[at : at + 1] == "]":
            return
        try:
            value, end = scan(text, at)
            if end == len(text) and not ended:
                raise json.JSONDecodeError("the item may go on", text, end)
        except (ValueError, RecursionError) as error:
            if ended:
                raise UserError(f"{path} is truncated or no JSON list: item {number + 1}: {error}") from None
            text, at = text[at:], 0
            wanted = 2 * len(text) + 1  # doubling keeps the work linear where one item spans many blocks
            while len(text) < wanted and not ended:
                block = next(chunks, None)
                ended = block is None
                text += decode(block or b"", final=ended)
            continue
        number, at = number + 1, end
        yield number, _object(value)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet after row {number}: {str(error).splitlines()[0]}") from None
