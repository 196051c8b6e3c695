"""Arrays of an .npz file, all of which are read: zip has their checksums."""

from pathlib import Path

import numpy as np

from rmfast.errors import first_line


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name.

    Raises:
        OSError: it cannot be read. ValueError: it is damaged, or no such file.
    """
    try:
        # numpy leaves a file open that it cannot read: so the file is opened here.
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError:
        raise
    except Exception as error:  # a flipped bit may ask zip for a method, a version or a password that it has not
        raise ValueError(first_line(error)) from None
