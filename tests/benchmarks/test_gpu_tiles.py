"""The tile search of benchmarks/gpu without a GPU: what it tries, when there is a winner, and where that is written."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.results import Results

ROOT = Path(__file__).resolve().parents[2]

EVERY_TARGET = """
import json
from benchmarks.gpu.search import variants
from benchmarks.gpu.targets import targets
found = {}
for target in targets():
    held = target.table[2].find((9, 0), *target.kinds, size=target.size)
    tile = next(tile for tile in reversed(target.candidates) if tile != held)
    names = [[one.name for one in variants(target, each, 90)] for each in (held, tile)]
    found[target.name] = [*names, len(target.candidates), len(set(target.candidates))]
print(json.dumps(found))
"""


def test_every_line_that_is_searched_is_read_by_its_kernel() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", EVERY_TARGET], cwd=ROOT, capture_output=True, text=True,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 13
    for name, (held, other, count, distinct) in found.items():
        assert held and len(held) == len(other) and not set(held) & set(other), name
        assert count == distinct > 10, name


def test_a_winner_must_be_clearly_faster_and_free_of_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from benchmarks.gpu import search, targets

    target = next(t for t in targets.targets() if t.name == "sinkhorn rows")
    spent: dict[int, float] = {}

    tiles = search.tiles_of(target, 90, 3)
    monkeypatch.setattr(search, "timed", lambda *_: spent)
    card = torch.device("cuda")

    def winner(**times: float) -> Any:
        spent.clear()
        spent.update({int(name[1:]): value for name, value in times.items()})
        rows = [{"tile": t._asdict(), "faults": ["spills"] if i == 1 else []} for i, t in enumerate(tiles)]
        return search.search(target, tiles, rows, 90, card)["winner"]

    found = [tile._asdict() for tile in tiles]
    assert winner(t0=1.0, t1=0.99, t2=1.2) is None  # within the noise
    assert winner(t0=1.0, t1=0.9, t2=0.8) == found[3]  # place 1 is refused: the third that is timed is the fourth tile
    assert winner(t1=0.9) == found[2]  # the tile that holds does not run there
    assert winner(t0=1.0) is None


def test_winners_become_lines_of_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    from benchmarks.gpu import write_tiles
    from benchmarks.gpu.targets import targets

    lines = []
    for target in targets():
        tile = target.candidates[0]
        name, file, table = target.table
        key = [90, *table.key((9, 0), *target.kinds, size=target.size)[1:]]
        times = {"held_milliseconds": 2.0, "winner_milliseconds": 1.0}
        lines.append({"file": file, "table": name, "key": key, "held": {}, "winner": tile._asdict()} | times)
        copy = tmp_path / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / file).read_text())
    monkeypatch.setattr(write_tiles, "ROOT", tmp_path)
    Results(tmp_path / "out").record("tiles", "all", status="done", result={"lines": lines})
    assert write_tiles.main(str(tmp_path / "out")) == 0
    assert "13 lines; now: python benchmarks/kernels/aot.py --update" in capsys.readouterr().out
    once = {line["file"]: (tmp_path / line["file"]).read_text() for line in lines}
    assert write_tiles.main(str(tmp_path / "out")) == 0  # a second time it replaces them
    for line, target in zip(lines, targets(), strict=True):
        text = (tmp_path / line["file"]).read_text()
        assert text == once[line["file"]]
        module = runpy.run_path(str(tmp_path / line["file"]))
        table = module[line["table"]]
        assert tuple(table.find((9, 0), *target.kinds, size=target.size)) == tuple(line["winner"].values())
        old = target.table[2].find((8, 0), *target.kinds, size=target.size)
        assert table.find((8, 0), *target.kinds, size=target.size) == old
    with pytest.raises(ValueError, match="no line"):
        write_tiles.with_line(once["kernels/attention/tiles.py"], "TILES", [90, "half", "up", 64], {"m": 1})
