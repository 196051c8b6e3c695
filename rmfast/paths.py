"""Checks of what a person gives as a path, and of what is there."""

import errno
import os
import stat
import unicodedata
from pathlib import Path


def usable_path(text: str) -> str:
    """The same text, which may name a file, a folder or a name on the hub, whether it is there or not.

    Raises:
        ValueError: no file can have such a name; the message goes on after the name of the option or key.
    """
    if not text.strip():
        raise ValueError("is empty; give a path")
    try:
        if any(unicodedata.category(c) == "Cc" for c in text):  # the console would obey it
            raise ValueError
        text.encode()  # as logs and configs are written
        os.lstat(text)
    except ValueError:  # UnicodeEncodeError is one, too
        raise ValueError(f"{text!r} holds a character that no path can have") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{text!r} is too long for a path") from None
    return text


def whole_text(path: str | Path) -> str:
    """What a file or pipe of UTF-8 text holds; an encoding's mark in front is left out.

    Raises:
        OSError: there is none, or a device, some of which never end. UnicodeDecodeError: it is no text.
    """
    if stat.S_ISCHR(os.stat(path).st_mode):
        raise OSError(errno.ENODEV, "Is a device, not a file", str(path))
    return Path(path).read_text(encoding="utf-8-sig")
