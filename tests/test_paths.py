"""What a person gives as a path: names that no file can have, and devices that never end."""

from pathlib import Path

import pytest

from rmfast.paths import usable_path, whole_text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\0b", "a character that no path can have"),
        ("a\x1b[31m", "a character that no path can have"),
        ("a\ud83d", "a character that no path can have"),
        ("x" * 300, "is too long for a path"),
        ("x/" * 3000, "is too long for a path"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        usable_path(path)


def test_other_names_stay_whether_a_file_is_there_or_not(tmp_path: Path) -> None:
    for path in (str(tmp_path), "no/such file é", "owner/name:config#split", f"{tmp_path}/x/../y"):
        assert usable_path(path) == path


def test_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfwords")
    assert whole_text(tmp_path / "text") == "words"
    with pytest.raises(OSError, match="Is a device, not a file"):
        whole_text("/dev/zero")
