"""Points of a scaling curve at tiny sizes with one and two processes, and what is made of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import collect, run
from tests.runs import ROOT, arguments, environment, fork_ranks, write_model

SAME = {"nodes": 1, "mfu": None, "memory_gib": 1.0, "model": "m", "weights": 10**9, "dtype": "bfloat16",
        "lengths": "hh", "device": "cpu", "tokens_per_pack": 64, "torch": "2", "commit": None,
        "parallel": {"engine": "native", "data": "ddp", "cuda_graphs": False}}  # fmt: skip


def point(folder: Path, mode: str, ranks: int, **changes: Any) -> None:
    """A made-up measurement: weak steps take as long at any size, strong ones 1 / ranks + 0.25 s."""
    seconds = 1.0 if mode == "weak" else 1 / ranks + 0.25
    groups = 16 * ranks if mode == "weak" else 64
    values = {"mode": mode, "ranks": ranks, "groups": groups, "step_seconds": seconds}
    values |= SAME | {"tokens_per_second": 100 * groups / seconds} | changes
    (folder / f"{mode}-{ranks:05d}.json").write_text(json.dumps(values))


def test_efficiency_is_by_rank_and_to_the_smallest_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ranks in (2, 4, 16):
        point(tmp_path, "weak", ranks)
        point(tmp_path, "strong", ranks)
    assert collect.main([str(tmp_path)]) == 0
    text = (tmp_path / "scaling.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "scaling.png").stat().st_size > 10_000
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [(row[0], int(row[1]), row[6]) for row in rows] == [
        ("weak", 2, "100.0%"), ("weak", 4, "100.0%"), ("weak", 16, "100.0%"),
        ("strong", 2, "100.0%"), ("strong", 4, "75.0%"), ("strong", 16, "30.0%"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"model": "n"}, "differ in model"), ({"device": "H100"}, "differ in device"), ({"groups": 7}, "global batch"),
     (None, "holds no weak-*.json")],
)  # fmt: skip
def test_points_that_cannot_be_compared_are_refused(
    tmp_path: Path, changes: dict[str, Any] | None, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if changes is not None:
        point(tmp_path, "strong", 1)
        point(tmp_path, "strong", 2, **changes)
    assert collect.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1 and not (tmp_path / "scaling.md").exists()


@pytest.mark.slow
def test_a_sweep_of_one_and_two_processes(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "run.yaml").write_text("data:\n  train: random\n")
    keys = arguments(model__path=tmp_path / "model", data__pairs_per_step=8, data__tokens_per_pack=128)
    sizes = ["--steps", "3", "--groups-per-rank", "4", "--lengths", "tiny", "--out", str(tmp_path / "out")]
    for mode in ("weak", "strong"):
        words = [str(tmp_path / "run.yaml"), *sizes, "--mode", mode, *keys]

        def work(words: list[str] = words) -> None:
            assert run.main(words) == 0

        assert fork_ranks(2, work) == [0, 0]
        if mode == "weak":
            work()
            continue
        command = [sys.executable, str(ROOT / "benchmarks" / "scaling" / "run.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
        assert done.returncode == 0, done.stderr
    read = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").iterdir()}
    assert {name: one["groups"] for name, one in read.items()} == {
        "weak-00001": 4, "weak-00002": 8, "strong-00001": 8, "strong-00002": 8,
    }  # fmt: skip
    for one in read.values():
        assert len(one["seconds"]) == 3 and one["step_seconds"] > 0 and one["device"] == "cpu"
        assert one["tokens_per_second"] == pytest.approx(sum(one["tokens"]) / sum(one["seconds"]))
    assert read["strong-00001"]["tokens"] == pytest.approx(read["strong-00002"]["tokens"]), "the same batches"
    assert collect.main([str(tmp_path / "out")]) == 0
