"""benchmarks/faults: a few of its cases, what it calls a flaw, and how a second call goes on."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.faults import phases, ways
from benchmarks.faults.cases import Case, run_all
from benchmarks.faults.damage import end_flaw
from benchmarks.faults.kills import aim
from benchmarks.faults.results import Results, farthest, other_bits
from benchmarks.faults.starts import HUNG
from tests.runs import ROOT, TRACEBACK, environment

FEW = (
    *("kills/ensemble heads/0", "kills/sft/0", "processes/second start/sft"),
    *(f"damage/ensemble heads, killed/features.npy/{way}" for way in ("flip", "empty", "folder")),
    *("damage/ensemble heads, killed/checkpoints NEWEST rank-00000.safetensors/flip", "damage/load/rmfast.json/noise"),
)
TENSORS = {"model/model.safetensors a": torch.tensor([1.0, torch.nan])}


def test_a_few_faults_change_no_bit_and_end_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "faults.json"
    words = ["-m", "benchmarks.faults", "--folder", tmp_path / "runs", "--json", file, "--only", *FEW]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["kills"]["kills"] == 8 and found["kills"]["left_an_unfinished_checkpoint"] >= 2
    outcomes = [
        record["outcome"].partition(":")[0] for kind in ("damage", "processes") for record in found[kind]["cases"]
    ]
    assert outcomes == [*4 * ["ended"], "loaded", "refused"]


def results_of(**changed: Any) -> Results:
    values = {"metrics.jsonl": [{"step": 1, "loss": 0.5, "sampler_gap": 0.1} | changed.get("line", {})]}
    return Results(values, changed.get("tensors", TENSORS))


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({}, ""),
        ({"line": {"loss": 0.5000001}}, "loss"),
        ({"line": {"step": 2}}, "step"),
        ({"line": {"more": 1}}, "metrics.jsonl"),
        ({"line": {"sampler_gap": 0.1000001}}, ""),  # tokens were drawn in other company
        ({"line": {"sampler_gap": 0.1001}}, "sampler_gap"),
        ({"tensors": {"model/model.safetensors a": torch.tensor([1.0 + 2**-23, torch.nan])}}, "safetensors a differs"),
        ({"tensors": {}}, "is in one alone"),
    ],
)
def test_other_bits_are_found_and_named(changed: dict[str, Any], where: str) -> None:
    found = other_bits(results_of(**changed), results_of())
    assert where in found if where else not found


def test_how_far_runs_are_apart_is_relative_beyond_1() -> None:
    far, where = farthest(results_of(line={"loss": 0.501}), results_of())
    assert far == pytest.approx(0.001) and "loss" in where
    tensors = (
        {"model/model.safetensors a": torch.tensor([1.0, 101.0])},
        {"model/model.safetensors a": torch.tensor([1.0, 100.0])},
    )
    assert farthest(results_of(tensors=tensors[0]), results_of(tensors=tensors[1]))[0] == pytest.approx(0.01)
    assert farthest(results_of(tensors={}), results_of())[0] == float("inf")


@pytest.mark.parametrize(
    ("codes", "said", "flaw"),
    [
        ([0], "step 1\n", ""),
        ([2], "rmfast: no\n", ""),
        ([1, 2], "rmfast: no\nrmfast: no\n", ""),  # two ranks
        ([0], "Traceback (most recent call last):\n", "a traceback"),
        ([2], "", "0 lines"),
        ([2], "rmfast: one\nrmfast: two\n", "2 lines"),
        ([TRACEBACK], "rmfast: no\n", f"ended with [{TRACEBACK}]"),
        ([0, HUNG], "", "did not end"),
    ],
)
def test_how_a_start_has_to_end(codes: list[int], said: str, flaw: str) -> None:
    assert flaw in end_flaw(codes, said) if flaw else not end_flaw(codes, said)


def test_a_third_of_the_kills_come_while_a_checkpoint_is_written() -> None:
    kills: list[dict[str, Any]] = []
    for _ in range(12):
        kills.append({"unfinished": ["a"] if aim(kills) == "save" else []})
    assert sum(bool(kill["unfinished"]) for kill in kills) == 4


@pytest.mark.parametrize("way", [*ways.FILE, *ways.LOG, ways.double, ways.folder])
def test_each_way_damages_a_file(way: ways.Way, tmp_path: Path) -> None:
    file, text = tmp_path / "log.jsonl", b'{"step": 1}\n{"step": 2}\n'
    file.write_bytes(text)
    way(file, random.Random(0))
    assert not file.is_file() or file.read_bytes() != text


def test_recorded_cases_are_not_run_again_and_a_failed_check_is_a_flaw(tmp_path: Path) -> None:
    ran: list[str] = []

    def broken() -> dict[str, Any]:
        raise KeyError("x")

    def good() -> dict[str, Any]:
        ran.append("good")
        return {"flaw": ""}

    cases = [Case("kind/good", good), Case("kind/broken", broken), Case("other/good", good)]
    for _ in range(2):
        found = run_all(cases, tmp_path / "records.jsonl", ["kind/*"], lambda name: None)
        assert [record["case"] for record in found] == ["kind/good", "kind/broken"] and ran == ["good"]
        assert not found[0]["flaw"] and "KeyError" in found[1]["flaw"]


def test_kills_of_ppo_take_turns_over_the_phases_of_all_setups() -> None:
    log = "point read _train\npoint rename\npoint draw evaluate\ndrew 4\npoint publish\n"
    points = {"one": [phases.points_of(log)], "two": [["update"], ["update", "export"]]}
    assert points["one"] == [["update", "evaluation, sampling", "other files"]] and phases.drawn([log]) == ["4"]
    plan = phases.planned(points, 8, 0)
    assert [kill.phase for kill in plan] == 2 * ["update", "evaluation, sampling", "other files", "export"]
    assert all(points[kill.setup][kill.rank][kill.point - 1] == kill.phase for kill in plan)
