""".npy files of one dimension that are written as they grow, and mapped when they are read."""

from pathlib import Path

import numpy as np

from rmfast.outputs.checksums import Checksum, SummedFile


class ArrayFile:
    """An .npy file of one dimension that grows; its header is written again when the length is known."""

    def __init__(self, path: Path, dtype: type) -> None:
        self.file = path.open("wb")
        self.dtype, self.length = np.dtype(dtype), 0
        self._write_header()
        self._summed = SummedFile(self.file)

    def append(self, array: np.ndarray) -> None:
        """Write behind what is there."""
        self._summed.write(array.astype(self.dtype, copy=False).tobytes())
        self.length += len(array)

    def close(self) -> Checksum:
        """End the file; the checksum of the array's bytes."""
        self.file.seek(0)
        self._write_header()  # numpy pads headers, so that the length may grow in place
        self.file.close()
        return self._summed.checksum

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)


def map_array(path: Path, dtype: type, checksum: Checksum | None) -> np.ndarray:
    """A file's array, read when it is used.

    Args:
        checksum: of its bytes, which are all read to be compared with it; None: they are not.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{path.name} holds {array.ndim} dimensions of {array.dtype}")
    if checksum is not None and Checksum.of(array.view(np.uint8).data) != checksum:
        raise ValueError(f"{path.name} is not what was written: its checksum differs")
    return array
