"""The measurements that one command makes, at tiny sizes: each runs to its file, and its figures are its raw times'."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks import checkpoints, ensemble_top, figures_raw, figures_tables, part2_cost, rmb
from rmfast.errors import UserError
from tests.evaluation.suites.test_rmb import write_benchmark
from tests.launch import against_plan
from tests.runs import fork_ranks


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


def test_adapters_beside_those_of_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from benchmarks import lora_cost

    out = tmp_path / "out.json"
    lora_cost.main(["--model", "tiny", "--layers", "2", "--rounds", "1", "--json", str(out)])
    result = figures_raw.load(out)
    for steps in result["steps"].values():
        assert list(steps["seconds"]) == ["rmfast", *steps["rmfast_share"]] and steps["largest_loss_difference"] < 1e-4
    sizes = result["bytes"]
    assert sizes["LoRA, `float32`"]["optimizer"] == 2 * sizes["LoRA, `float32`"]["gradients"]
    assert sizes["LoRA, `float32`"]["copies"] == 0 < sizes["LoRA, `bfloat16`"]["copies"]
    full = sizes["full training, `float32`"]
    assert full["weights"] == full["gradients"] == full["optimizer"] / 2
    assert "| 1 |" in figures_tables.adapters_time(result) and " MB |" in figures_tables.adapters_memory(result)
    result["steps"]["hh"]["seconds"]["rmfast"][0] *= 2
    out.write_text(json.dumps(result))
    with pytest.raises(UserError, match="hh, rmfast, cpu_seconds: the file says"):
        figures_raw.load(out)


def test_members_over_one_trunk_beside_others(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--model", "tiny", "--lengths", "tiny", "--layers", "3", "--members", "3", "--pairs", "2", "--rounds", "1"]
    ensemble_top.main([*sizes, "--json", str(out)])
    result = figures_raw.load(out)
    assert list(result["seconds"]) == ["full", "alone", "trunk", "members"] and result["largest_loss_difference"] < 1e-4
    held = result["bytes"]
    assert held["ensemble"]["trunk"] + held["ensemble"]["weights"] // 3 == held["full"]["weights"]
    assert held["ensemble"]["gradients"] == held["ensemble"]["weights"] == 3 * held["top_layers"]["gradients"]
    assert "| 3 members, top 2 layers, over one trunk |" in figures_tables.members(result)
    assert figures_tables.members_memory(result).count(" MB |") == 12
    result["seconds"]["members"][0] *= 2
    out.write_text(json.dumps(result))
    with pytest.raises(UserError, match="members, cpu_seconds: the file says"):
        figures_raw.load(out)


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
def test_steps_beside_the_plan_for_measured_rates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("megatron.core")
    out = tmp_path / "out.json"
    sizes = {"rounds": 1, "width": 64, "ffn": 64, "layers": 2, "heads": 4, "group": 16, "tokens": 64, "packs": 2,
             "size": 2**12}  # fmt: skip
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]

    def work() -> None:
        assert against_plan.main(["--out", str(out), *words]) == 0

    assert fork_ranks(2, work) == [0, 0]
    printed = capfd.readouterr().out
    result = json.loads(out.read_text())
    assert list(result["cases"]) == ["native", "ddp2", "dp2", "tp2", "tp2 sp", "pp2"]
    for name, row in result["cases"].items():
        assert row["measured"] == max(result["measured"]["seconds"][name][0]) and row["planned"] > 0
        assert f"| {name} | {row['measured']:.3f} |" in printed


def test_what_a_checkpoint_costs_the_steps_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--model", "tiny", "--lengths", "tiny", "--layers", "2", "--rounds", "2", "--pairs", "2", "--gib", "0.001"]
    checkpoints.main([*sizes, "--out", str(out)])
    result = json.loads(out.read_text())
    seconds, summary = result["seconds"], result["summary"]
    assert {name: len(each) for name, each in seconds.items()} == dict.fromkeys(seconds, 2) and len(seconds) == 5
    wait, step = (median(each["wall"] for each in seconds[name]) for name in ("wait", "step"))
    assert summary["wait, share of a step's wall"] == wait / step
    assert summary["asking each step for a save, share of a step's CPU"] < 0.02
    assert {"crc32", "blake2b", "sha256"} <= result["hash_seconds_per_gib"].keys()
    assert 0 < result["gib"] < 0.1
