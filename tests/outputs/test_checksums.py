"""Checksums: of what was written, in whichever pieces, and of a JSON object's own values."""

import json
import zlib
from dataclasses import asdict
from pathlib import Path

import pytest

from rmfast.outputs import checksums
from rmfast.outputs.checksums import (
    Checksum,
    difference,
    file_checksum,
    sealed,
    sealed_line,
    unsealed,
    unsealed_line,
    write_summed,
)

DATA = bytes(range(256)) * 5


def test_a_checksum_is_zlibs_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Checksum(len(DATA), f"{zlib.crc32(DATA):08x}")
    monkeypatch.setattr(checksums, "BLOCK", 7)
    assert write_summed(tmp_path / "file", DATA) == whole
    assert (tmp_path / "file").read_bytes() == DATA
    assert file_checksum(tmp_path / "file") == Checksum.of(DATA) == whole
    assert Checksum.of(b"123456789") == Checksum(9, "cbf43926")  # the check value of this CRC


def test_a_file_differs_by_size_by_a_bit_or_by_being_gone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    written = asdict(write_summed(file, DATA))
    assert difference(file, written) == ""
    file.write_bytes(DATA[:-1])
    assert difference(file, written) == "has 1,279 bytes of 1,280"
    file.write_bytes(bytes([DATA[0] ^ 64]) + DATA[1:])
    assert difference(file, written) == "is not what was written: its checksum differs"
    file.unlink()
    assert difference(file, written) == "is not there"
    assert difference(tmp_path, {"bytes": tmp_path.stat().st_size, "crc32": ""}) == "cannot be read: Is a directory"
    file.touch()
    assert difference(file, {}) == "has no checksum that can be read"


def test_a_line_is_sealed_by_its_text() -> None:
    line = sealed_line('{"a": 1, "b": ["ü"]}')
    body = '{"a": 1, "b": ["ü"]'.encode()
    assert line == body + f', "crc32": "{zlib.crc32(body):08x}"}}\n'.encode()
    assert unsealed_line(line) == unsealed_line(line.rstrip()) == {"a": 1, "b": ["ü"]}
    assert unsealed_line(b'{"a": 1}') == {"a": 1}  # of an earlier version
    with pytest.raises(ValueError, match="its checksum differs"):
        unsealed_line(line.replace(b"1", b"2", 1))
    for text in (b"", b"[1]", b"5", line[:-9], b"\xff\x00"):
        with pytest.raises(ValueError):
            unsealed_line(text)


def test_a_flipped_bit_in_a_line_is_told_or_changes_no_value() -> None:
    line, told = sealed_line('{"reward": -0.25, "samples": [{"ids": [3, 14]}]}'), 0
    for place in range(len(line)):
        try:
            values = unsealed_line(line[:place] + bytes([line[place] ^ 1 << place % 8]) + line[place + 1 :])
            assert (values["reward"], values["samples"]) == (-0.25, [{"ids": [3, 14]}])
        except ValueError:
            told += 1
    assert told > len(line) - 10


def test_a_seal_is_of_the_values_not_of_their_text() -> None:
    values = {"step": 3, "names": ("a", "é"), "rate": 1e-5, "by": {1: None}}
    text = json.dumps(sealed(values))
    assert unsealed(json.loads(text), "names") == {"step": 3, "names": ["a", "é"], "rate": 1e-5, "by": {"1": None}}
    again = json.dumps(json.loads(text), indent=4, sort_keys=True)
    assert unsealed(json.loads(again), "names")["step"] == 3
    with pytest.raises(ValueError, match="damaged or edited"):
        unsealed(json.loads(text.replace('"step": 3', '"step": 4')), "names")
    with pytest.raises(ValueError, match="damaged or edited"):
        unsealed(json.loads(text.replace('"crc32"', '"crc33"')), "names")
    assert unsealed({"step": 3}, "names") == {"step": 3}  # an earlier version's
