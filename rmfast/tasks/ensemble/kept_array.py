"""Arrays in a run folder that a resumed run reads again: with a note that says of what they are, and their checksum."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rmfast.console import say
from rmfast.data.files import sync, write_text, written_whole
from rmfast.errors import first_line
from rmfast.outputs.checksums import Checksum, SummedFile, sealed, unsealed
from rmfast.parallel.world import World

CHECKSUM = "checksum"  # in the note; of the array


@dataclass(frozen=True)
class KeptArray:
    """An array [rows, width] in `file`, an .npy; its note is the .json of the same name."""

    file: Path
    dtype: np.dtype

    @property
    def note(self) -> Path:
        return self.file.with_suffix(".json")

    def make(
        self, world: World, key: str, shape: tuple[int, int], parts: Callable[[], Iterator[np.ndarray]], line: str
    ) -> None:
        """Write the array where one of that key and shape is not there, whole. All ranks call it.

        Args:
            key: of what the array depends on, on rank 0. parts: some rows after others, made by all ranks together.
            line: says on rank 0 what is made.
        """
        found = world.main and self._made_before(key, shape)
        if world.any(found):
            if world.main:
                say(f"{self.file}: made before")
            return
        if world.main:
            self.note.unlink(missing_ok=True)  # for good, before another array has its key
            sync(self.file.parent)
            say(line)
        with self._rows(shape) if world.main else nullcontext() as out:
            for values in parts():
                if out is not None:
                    out.write(_bytes(np.ascontiguousarray(values, self.dtype)))
        if out is not None:
            write_text(self.note, json.dumps(sealed({"key": key, CHECKSUM: asdict(out.checksum)})) + "\n")
        world.barrier()  # others may read it

    def open(self) -> np.ndarray:
        """The array, memory-mapped."""
        array: np.ndarray = np.load(self.file, mmap_mode="r")
        return array

    @contextmanager
    def _rows(self, shape: tuple[int, int]) -> Iterator[SummedFile]:
        """Where the rows are written to; by no memory map, for a full disk kills who does."""
        with written_whole(self.file) as temporary, temporary.open("wb") as out:
            header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            yield SummedFile(out)

    def _made_before(self, key: str, shape: tuple[int, int]) -> bool:
        """Whether an array of that key and shape is there, whole; what is damaged is not."""
        if not self.note.is_file():
            return False
        try:
            array, of = whole_array(self.file, self.note)
            return of == key and array.shape == shape
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError) as error:
            say(f"{self.file}: damaged, with {self.note.name} ({first_line(error)}); made again")
            return False


def whole_array(file: Path, note: Path) -> tuple[np.ndarray, str]:
    """An array that `KeptArray.make` wrote, all of which is read, and its key.

    Raises:
        OSError, ValueError, TypeError, KeyError, AttributeError, EOFError: it cannot be read, or is not what was
            written.
    """
    values = unsealed(json.loads(note.read_text(encoding="utf-8")), CHECKSUM)
    array: np.ndarray = np.load(file, mmap_mode="r")
    if CHECKSUM in values and Checksum(**values[CHECKSUM]) != Checksum.of(_bytes(array)):
        raise ValueError(f"{file.name} is not what was written: its checksum differs")
    return array, values["key"]


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
