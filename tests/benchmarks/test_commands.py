"""The measurements that one command makes, at tiny sizes: each runs to its file, and its figures are its raw times'."""

import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks import part2_cost, rmb
from tests.evaluation.suites.test_rmb import write_benchmark
from tests.runs import ROOT, environment, torchrun


def ratios(table: dict[str, Any], kind: str) -> list[float]:
    return [a / b for a, b in zip(table[kind], table["plain"], strict=True)]


def test_the_methods_of_part_2_beside_plain_steps(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--model", "tiny", "--lengths", "tiny", "--layers", "2", "--rounds", "2"]
    part2_cost.main([*sizes, "--out", str(out)])
    result = json.loads(out.read_text())
    assert list(result["seconds"]) == ["plain", "meta", "simcse, second pass", "simcse, extra responses"]
    summary, tokens = result["summary"], result["tokens"]
    assert summary["simcse, second pass: tokens"] == 2 > summary["simcse, extra responses: tokens"] > 1
    assert summary["meta: tokens"] == median(ratios(tokens, "meta")) > 1.5
    assert summary["meta: time"] == median(ratios(result["seconds"], "meta")) > 0


def test_rmb_by_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_benchmark(tmp_path / "RMB_dataset"), tmp_path / "out.json"
    rmb.main(
        ["--data", str(data), "--model", "tiny", "--layers", "2", "--files", "0", "--lists", "0", "--out", str(out)]
    )
    result = json.loads(out.read_text())
    assert [row["file"].split("/")[0] for row in result["files"]] == ["BoN_set"] * 4 + ["Pairwise_set"] * 4
    for row in result["files"]:
        assert row["verdicts_differ"] == 0 and row["difference"] < 1e-5, row
        assert row["tokens"]["rmfast"] < row["tokens"]["real"] <= row["tokens"]["computed"]
    seconds = result["seconds"]
    assert result["ratio"] == seconds["transformers"] / seconds["rmfast"]
    assert "0 verdicts differ" in capsys.readouterr().out
    rmb.main(
        ["--data", str(data), "--model", "tiny", "--layers", "2", "--files", "2", "--lists", "3", "--out", str(out)]
    )
    assert [row["lists"] for row in json.loads(out.read_text())["files"]] == [3, 3]  # best-of-n alone


@pytest.mark.slow
def test_steps_beside_the_plan_for_measured_rates(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    out = tmp_path / "out.json"
    sizes = {"rounds": 1, "width": 64, "ffn": 64, "layers": 2, "heads": 4, "group": 16, "tokens": 64, "packs": 2,
             "size": 2**12}  # fmt: skip
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    command = [*torchrun(2), str(ROOT / "tests/launch/against_plan.py"), "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result["cases"]) == ["native", "ddp2", "dp2", "tp2", "tp2 sp", "pp2"]
    for name, row in result["cases"].items():
        assert row["measured"] == max(result["measured"]["seconds"][name][0]) and row["planned"] > 0
        assert f"| {name} | {row['measured']:.3f} |" in done.stdout
