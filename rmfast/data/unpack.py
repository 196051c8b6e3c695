"""Which files are read; a file -> its bytes, unpacked where it is .gz or .zst, in blocks."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

import zstandard

from rmfast.errors import UserError, first_line

_PACKED = ("", ".gz", ".zst")
SUFFIXES = (".jsonl", ".json", ".parquet", *(kind + pack for kind in (".jsonl", ".json") for pack in _PACKED[1:]))
NOT_READ = tuple(kind + pack for kind in (".csv", ".tsv") for pack in _PACKED)
"""Kinds of files that hold rows too: what to do about them is said where one is asked for."""
CHUNK = 1 << 20


def suffix_of(path: PurePath) -> str:
    """The suffix of a file that holds rows, both parts of it where it is packed; "" for other files."""
    return next((suffix for suffix in SUFFIXES + NOT_READ if path.name.endswith(suffix)), "")


def chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks that are never empty.

    Raises:
        UserError: the file cannot be read, is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as unpacked:
                    while block := unpacked.read(CHUNK):
                        yield block
            elif path.suffix == ".zst":
                yield from _unpack_zst(file)
            else:
                while block := file.read(CHUNK):
                    yield block
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged: {first_line(error)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _unpack_zst(file: BinaryIO) -> Iterator[bytes]:
    """All frames of a .zst file. The library's reader takes a truncated frame for a short one."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    while block := file.read(CHUNK >> 8):  # small, because all that a block unpacks to comes at once
        while block:
            frame = frame or unpacker.decompressobj()
            if unpacked := frame.decompress(block):
                yield unpacked
            block = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame is incomplete")
