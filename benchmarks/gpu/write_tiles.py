"""Puts the tile search's winners into the kernels' tables: `python -m benchmarks.gpu.write_tiles FOLDER [--dry-run]`.

FOLDER is one of results. A line for the device's generation is added or replaced; lines of other generations stay.
Then `python benchmarks/kernels/aot.py --update` says whether the compiler's rules hold in every form of the kernels
(windows, softcaps, odd sizes), and writes the golden file; take a line out again that it refuses, and what a table adds
for the Triton of the search, if it has the same key. Other tiles are another commit:
`python -m benchmarks.gpu --out NEW --stages suite kernels` tests and times them.
"""

import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import ROOT
from benchmarks.gpu.results import Results
from benchmarks.gpu.stages.tiles import gain
from rmfast.kernels.tables import ANY


def key_text(key: list[Any]) -> str:
    """A line's key as the tables write it."""
    return "(" + ", ".join("ANY" if part == ANY else f'"{part}"' if isinstance(part, str) else str(part)
                           for part in key) + ")"  # fmt: skip


def with_line(source: str, table: str, key: list[Any], tile: dict[str, int]) -> str:
    """A module's text with a tile on a line of one of its tables.

    Raises:
        ValueError: the table has no line for such work.
    """
    begin = re.search(rf"^{table}: Table\[(\w+)\] = Table\(\n    {{\n", source, re.MULTILINE)
    if begin is None:
        raise ValueError(f"no table {table}")
    end = source.index("\n    }\n", begin.end() - 1)
    lines = source[begin.end() : end].split("\n")
    fresh = f"        {key_text(key)}: {begin[1]}({', '.join(str(value) for value in tile.values())}),"
    rest = key_text(["", *key[1:]])[len('("", ') :]
    alike = [i for i, line in enumerate(lines) if re.match(rf" *\(\d+, {re.escape(rest)}: ", line)]
    if not alike:
        raise ValueError(f"{table} has no line ending in {rest}")
    own = [i for i in alike if lines[i].strip().startswith(f"({key[0]}, ")]
    if own:
        lines[own[0]] = fresh
    else:
        lines.insert(alike[-1] + 1, fresh)
    return source[: begin.end()] + "\n".join(lines) + source[end:]


def main(folder: str, flag: str = "") -> int:
    """Entry point."""
    written = 0
    for record in Results(Path(folder)).stage("tiles").values():
        for line in record["result"]["lines"] if record["status"] == "done" else ():
            if line["winner"] is None:
                continue
            print(f"{line['file']}: {key_text(line['key'])}: {line['held']} -> {line['winner']}, {gain(line)}")
            if flag != "--dry-run":
                path = ROOT / line["file"]
                text = with_line(path.read_text(encoding="utf-8"), line["table"], line["key"], line["winner"])
                path.write_text(text, encoding="utf-8")
            written += 1
    print(
        f"{written} lines; now: python benchmarks/kernels/aot.py --update" if written else "no winner, nothing to write"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
