"""Checksums that tell whether a file is what was written: made while it is written, checked when it is read.

CRC-32 is zlib's, of which every Python has one: a change of up to 32 neighbouring bits is always found, any other is
missed once in 4 thousand million. It finds accidents, not forgeries.
"""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

Data = bytes | memoryview
"""Bytes, or a view of them as such."""

BLOCK = 1 << 22  # bytes at a time: they are still in the processor's cache when they are written
SEAL = "crc32"  # of a JSON object's other values
_SEALED = re.compile(rf', "{SEAL}": "([0-9a-f]{{8}})"}}\s*$'.encode())


@dataclass(frozen=True)
class Checksum:
    """Of so many bytes. `crc32`: 8 hexadecimal digits."""

    bytes: int
    crc32: str

    @classmethod
    def of(cls, data: Data) -> "Checksum":
        """Of what is in memory, or mapped to it."""
        view = memoryview(data)
        return cls(len(view), _hex(zlib.crc32(view)))


class SummedFile:
    """A file that is written from its beginning to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self._bytes, self._crc = file, 0, 0

    def write(self, data: Data) -> None:
        """Append."""
        view = memoryview(data)
        for begin in range(0, len(view), BLOCK):
            block = view[begin : begin + BLOCK]
            self._crc = zlib.crc32(block, self._crc)
            self.file.write(block)
        self._bytes += len(view)

    @property
    def checksum(self) -> Checksum:
        """Of what was written so far."""
        return Checksum(self._bytes, _hex(self._crc))


def write_summed(path: Path, data: Data) -> Checksum:
    """Write a file; its checksum."""
    with path.open("wb") as file:
        summed = SummedFile(file)
        summed.write(data)
    return summed.checksum


def write_json(path: Path, value: Any) -> Checksum:
    """Write a file of JSON in the form that transformers gives its own; its checksum."""
    return write_summed(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def file_checksum(path: Path) -> Checksum:
    """Of a file, read to its end."""
    total, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            total, crc = total + len(block), zlib.crc32(block, crc)
    return Checksum(total, _hex(crc))


def difference(path: Path, written: Mapping[str, Any]) -> str:
    """What tells a file from the one that was written; empty where nothing does.

    Args:
        written: the checksum, as a JSON object.
    """
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"has {size:,} bytes of {written['bytes']:,}"
        return "" if asdict(file_checksum(path)) == written else "is not what was written: its checksum differs"
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (KeyError, TypeError, ValueError):
        return "has no checksum that can be read"


def differences(folder: Path, written: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What tells files of a folder from those that were written, by name; of those alone that differ.

    Args:
        written: the checksums of files, as JSON objects.
    """
    return {name: what for name, checksum in written.items() if (what := difference(folder / name, checksum))}


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of its values."""
    return {**values, SEAL: _seal(values)}


def unsealed(values: Mapping[str, Any], sums: str) -> dict[str, Any]:
    """The values of a JSON object.

    Args:
        sums: the key of the checksums in it; an object without them, as earlier versions wrote it, needs no seal.

    Raises:
        ValueError: the values are not those that were sealed.
    """
    rest = {key: value for key, value in values.items() if key != SEAL}
    if (SEAL in values or sums in values) and values.get(SEAL) != _seal(rest):
        raise ValueError("its checksum differs: it was damaged or edited")
    return rest


def sealed_line(line: str) -> bytes:
    """The line of a JSON object that has values, with a checksum of its text as the last one."""
    body = line.removesuffix("}").encode()
    return body + f', "{SEAL}": "{_hex(zlib.crc32(body))}"}}\n'.encode()


def unsealed_line(line: bytes) -> dict[str, Any]:
    """The values of a line, its checksum left out; one of an earlier version may have none.

    Raises:
        ValueError: it is no JSON object, or not what was sealed.
    """
    if (found := _SEALED.search(line)) and _hex(zlib.crc32(line[: found.start()])).encode() != found[1]:
        raise ValueError("its checksum differs: it was damaged or edited")
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    values.pop(SEAL, None)
    return values


def _seal(values: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(values))  # keys become strings, tuples lists
    return _hex(zlib.crc32(json.dumps(read_back, sort_keys=True).encode()))


def _hex(crc: int) -> str:
    return f"{crc:08x}"
