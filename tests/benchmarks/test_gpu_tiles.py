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

ROOT = Path(__file__).resolve().parents[2]

EVERY_TARGET = """
import json
from benchmarks.gpu.search import variants
from benchmarks.gpu.targets import targets
found = {}
for target in targets():
    held = target.held(90)
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
    from benchmarks.gpu.stages import tiles as tiles_stage

    target = next(t for t in targets.targets() if t.name == "sinkhorn rows")
    tiles = search.tiles_of(target, 90, 3)
    found = [tile._asdict() for tile in tiles]
    card = torch.device("cuda")

    def line(*times: Any, refused: int = 1) -> dict[str, Any]:
        given = [[one, one] if isinstance(one, float) else one for one in times]
        monkeypatch.setattr(search, "timed", lambda *_: given)
        rows = [{"tile": t._asdict(), "faults": ["spills"] if i == refused else []} for i, t in enumerate(tiles)]
        return search.search(target, tiles, rows, 90, card)

    assert line(1.0, 0.99, 1.2)["winner"] is None  # within the noise
    assert line(1.0, 0.9, 0.8)["winner"] == found[3]  # place 1 is refused: the third that is timed is the fourth tile
    assert line(1.0, 0.9, "wrong: x")["winner"] == found[2]
    noisy = line([1.0, 1.1] * 5, 0.95, 1.0)  # the tile that holds differs from itself by 10 %
    assert noisy["winner"] is None and noisy["held_spread"] == pytest.approx(0.0909, abs=1e-3)
    alone = line(0.9, 1.0, 1.0, refused=0)  # the tile that holds spills
    assert alone["winner"] == found[1] and alone["held_milliseconds"] is None
    record = {"one": {"status": "done", "result": {"lines": [alone]}}}
    assert "the only one that runs" in tiles_stage.lines(record)[0]
    assert tiles_stage.lines(record)[1].endswith(f"kernels/sinkhorn/tiles.py, ROWS: {alone['line']}")


def test_what_is_timed_must_agree_with_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from benchmarks.gpu import search, targets

    monkeypatch.setattr(search, "CALLS", 1)
    monkeypatch.setattr(search, "ROUNDS", 1)
    cpu = torch.device("cpu")
    for target in targets.targets():
        if target.name in CHECKED:
            tiles = search.tiles_of(target, 90, 1)
            held, other = search.timed(target, tiles, 90, cpu, small=True)
            assert len(held) == 2 and len(other) == 1, (target.name, held, other)

    run, truth = target.calls(cpu, True)[0]
    seen = iter(range(100))
    broken = [(lambda: run() * (1.1 if next(seen) >= 2 else 1.0), truth)]  # what is checked second is the other tile

    def with_calls(pairs: Any) -> list[Any]:
        monkeypatch.setattr(targets.Target, "calls", lambda *_: pairs)
        return search.timed(target, tiles, 90, cpu, small=True)

    found = with_calls(broken)
    assert isinstance(found[0], list) and found[1].startswith("wrong: result 0 differs")

    def refuses() -> Any:
        raise ValueError("out of shared memory")

    refused = with_calls([(refuses, truth)])
    assert refused == ["ValueError: out of shared memory"] * 2
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: refuses())
    with pytest.raises(RuntimeError, match="device is lost to this process: illegal address"):
        search.usable(torch.device("cuda"), RuntimeError("illegal address"))


CHECKED = ("linear_log_prob fwd", "linear_log_prob bwd", "sinkhorn rows")  # the others take minutes in the interpreter


def test_winners_are_shown_as_lines_of_their_tables() -> None:
    pytest.importorskip("triton")
    from benchmarks.gpu import search
    from benchmarks.gpu.targets import targets

    for target in targets():
        tile, (name, table) = target.candidates[0], target.table
        module = runpy.run_path(str(ROOT / target.file))
        assert module[name].lines == table.lines
        (line,) = eval("{" + search.line_of(target, tile, 90) + "}", module).items()
        key, made = line
        with table.replaced(key, made):
            assert table.find((9, 0), *target.kinds, size=target.line) == made == tuple(tile)
        assert target.held(80) == table.find((8, 0), *target.kinds, size=target.line)
