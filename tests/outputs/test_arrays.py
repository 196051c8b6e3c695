"""Arrays are read whole or refused, whatever happened to their file."""

from pathlib import Path

import numpy as np
import pytest

from rmfast.outputs.arrays import read_arrays


def test_a_flipped_bit_is_told_or_changes_no_array(tmp_path: Path) -> None:
    file, values, told = tmp_path / "a.npz", np.arange(5.0), 0
    np.savez_compressed(file, data=values)
    data = file.read_bytes()
    for place in range(len(data)):
        for bit in range(8):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            try:
                found = read_arrays(file)
            except (OSError, ValueError):
                told += 1
            else:
                assert "data" not in found or np.array_equal(found["data"], values)
    assert told > len(data) * 4


@pytest.mark.parametrize("data", [b"", b"PK", b"{}", b"\x93NUMPY"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError):
        read_arrays(tmp_path / "a.npz")


def test_one_array_alone_is_no_such_file(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(ValueError):
        read_arrays(tmp_path / "a.npz")
