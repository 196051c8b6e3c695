"""An error of the file system is one line: the file, the reason, what to do."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from rmfast.errors import RunError, UserError
from rmfast.outputs.failure import ADVICE, disk_line, ending, naming

FULL = "I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("number", ADVICE)
def test_each_failure_says_what_to_do(number: int) -> None:
    line = disk_line(OSError(number, os.strerror(number), "/run/a"))
    assert line is not None and "\n" not in line and line.startswith("/run/a: cannot be ")
    assert line.endswith(f"{os.strerror(number)}; {ADVICE[number]}")
    assert ("be written" in line) == (number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))


def test_libraries_that_have_errors_of_their_own_are_understood() -> None:
    for error in (SafetensorError(FULL), Exception(FULL)):
        line = "/run: cannot be written: No space left on device; free some space there"
        assert disk_line(error, Path("/run")) == line
    with pytest.raises(OSError) as raised, naming(Path("/run/b")):
        raise SafetensorError(FULL)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/run/b")


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("x"), BrokenPipeError(errno.EPIPE, ""), UserError(FULL), RunError(FULL)]
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert disk_line(error) is None
    with pytest.raises(type(error)) as raised, naming(Path("/run")):
        raise error
    assert raised.value is error


def test_a_user_s_error_ends_with_2_a_run_s_with_1_and_a_bug_with_its_traceback() -> None:
    assert ending(UserError("x")) == (2, "x") and ending(RunError("y")) == (1, "y")
    line = r"a\nb: cannot be written: Read-only file system; its file system is read-only"
    assert ending(OSError(errno.EROFS, os.strerror(errno.EROFS), "a\nb")) == (2, line)
    assert ending(IsADirectoryError(errno.EISDIR, "Is a directory", "c")) == (2, "c: Is a directory")
    assert ending(OSError("without a file")) is None and ending(ValueError("z")) is None
    line = "a file: cannot be written: No space left on device; free some space there"
    assert ending(SafetensorError(FULL)) == (2, line)


def test_a_file_that_is_not_finished_goes_by_its_last_name(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, naming(tmp_path / "model", tmp_path / "none"):
        (tmp_path / "none" / "weights").write_text("")
    assert raised.value.filename == str(tmp_path / "model")
