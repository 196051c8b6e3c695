"""Ways of damaging a file or a folder."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Way = Callable[[Path, random.Random], None]


def flip(path: Path, draw: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, draw: random.Random) -> None:
    """Somewhere."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def empty(path: Path, draw: random.Random) -> None:
    """No byte is left."""
    os.truncate(path, 0)


def delete(path: Path, draw: random.Random) -> None:
    """A file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def double(path: Path, draw: random.Random) -> None:
    """The same bytes behind it again."""
    path.write_bytes(2 * path.read_bytes())


def noise(path: Path, draw: random.Random) -> None:
    """Other bytes, as many."""
    path.write_bytes(draw.randbytes(path.stat().st_size))


def zeros(path: Path, draw: random.Random) -> None:
    """A part that was never flushed."""
    data = bytearray(path.read_bytes())
    begin = draw.randrange(len(data))
    data[begin:] = bytes(len(data) - begin)
    path.write_bytes(data)


def folder(path: Path, draw: random.Random) -> None:
    """A folder where a file was."""
    path.unlink()
    path.mkdir()


def half(path: Path, draw: random.Random) -> None:
    """A folder that somebody began to delete."""
    names = sorted(path.iterdir())
    for file in draw.sample(names, len(names) // 2):
        file.unlink()


def edit(path: Path, draw: random.Random) -> None:
    """A counter of a JSON file, of which all else is as it was."""
    values = json.loads(path.read_text(encoding="utf-8"))
    holder = values.get("progress", values)
    key = draw.choice(sorted(key for key, value in holder.items() if type(value) is int))
    holder[key] += 1
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def edit_place(path: Path, draw: random.Random) -> None:
    """A place in a JSON file of places."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values[draw.choice(sorted(values))]["start"] += 1
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def swap(path: Path, draw: random.Random) -> None:
    """The same file of another folder beside this one's, and that one here."""
    other = next(p for p in sorted(path.parent.parent.glob(f"*/{path.name}")) if p != path)
    held = path.with_name("held")
    path.rename(held)
    other.rename(path)
    held.rename(other)


def newer(path: Path, draw: random.Random) -> None:
    """A checkpoint under a later step's name."""
    path.rename(path.with_name(f"step-{int(path.name[5:]) + 1}"))


def line(path: Path, draw: random.Random) -> None:
    """One line of a log is cut short."""
    lines = path.read_bytes().splitlines()
    number = draw.randrange(len(lines))
    lines[number] = lines[number][: draw.randrange(1, len(lines[number]))]
    path.write_bytes(b"\n".join(lines) + b"\n")


def binary(path: Path, draw: random.Random) -> None:
    """A line of a log is no text."""
    lines = path.read_bytes().splitlines()
    lines.insert(draw.randrange(len(lines)), bytes(range(128, 256)))
    path.write_bytes(b"\n".join(lines) + b"\n")


FILE: tuple[Way, ...] = (flip, truncate, empty, delete, noise, zeros)
LOG: tuple[Way, ...] = (line, binary, truncate, empty, delete, noise)
