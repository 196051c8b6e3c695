"""PPO beside another trainer, and the study of policies under a gold reward model: what runs, and what is written."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.ppo import compare, study
from benchmarks.ppo.compare import Side
from rmfast.config import load_config
from tests.ppo.tiny import write_inputs
from tests.runs import read_lines

STRANGER = """
import json, sys
print("===training policy===")
print(json.dumps({"state_bytes": 10, "imported_bytes": 5}), flush=True)
for number in range(2):
    print("ready", flush=True)
    sys.stdin.readline()
    print({'loss': 1.0})
    print(json.dumps({"cpu_seconds": 3.0 + number, "peak_bytes": 100 + number}), flush=True)
"""


def test_sides_take_turns_and_their_memory_is_what_is_above_models(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(STRANGER)
    side = Side.start([sys.executable, str(tmp_path / "stranger.py")], {}, tmp_path / "side")
    side.iterate()
    assert side.process.poll() is None
    side.iterate()
    result = side.result()
    assert result["cpu_seconds"] == 3.5 and result["working_bytes"] == 101 - 5 - 10
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with 3"):
        Side.start([sys.executable, str(tmp_path / "broken.py")], {}, tmp_path / "broken")


def test_our_side_takes_the_iterations_of_a_job(tmp_path: Path) -> None:
    folder = write_inputs(tmp_path)
    job = {
        "policy": str(folder / "policy"), "reward": str(folder / "reward"), "prompts": [[3, 4], [5, 6, 7]],
        "samples": 2, "tokens": 3, "iterations": 2, "rate": 1e-3, "batch": 2, "pack": 64,
    }  # fmt: skip
    side = Side.start([sys.executable, "-m", "benchmarks.ppo.worker"], job, tmp_path / "side")
    for _ in range(2):
        side.iterate()
    weights = 2 * 8992 + 2 * 32  # of two layers of width 32, in each of policy and critic; whose table is untied
    assert side.facts["state_bytes"] > 16 * weights and side.process.wait() == 0
    assert side.done[0]["objective/kl"] == 0 and side.done[1]["objective/kl"] != 0
    assert all(one["cpu_seconds"] > 0 and one["peak_bytes"] >= side.facts["imported_bytes"] for one in side.done)
    assert 1 <= side.done[0]["mean_length"] <= 3


def test_the_study_s_runs_are_configs_with_their_data_apart(tmp_path: Path) -> None:
    one = study.Study(tmp_path, "models/none", steps=8, seeds=2)
    proxy, gold = one.halves()
    prompts = [{json.dumps(row["prompt"]) for row in read_lines(file)} for file in (proxy, gold)]
    assert all(len(part) > 300 for part in prompts) and not prompts[0] & prompts[1]
    commands = [one.sft(), *one.rewards().values(), *one.policies().values()]
    configs = [load_config(command) for command in commands]
    assert len({config.run.dir for config in configs}) == len(configs) == 1 + 2 + 2 * 3
    assert [config.data.train for config in configs[1:-6]] == [(str(proxy),), (str(gold),)]
    assert (configs[1].ensemble.members, configs[1].model.top_layers) == (study.MEMBERS, study.LAYERS)
    policies = configs[-6:]
    assert {(c.ppo.preset, c.ppo.reward_rule, len(c.ppo.reward)) for c in policies} == {
        ("ppo_max", "mean", 1), ("ppo", "mean", 1), ("ppo_max", "worst", study.MEMBERS)
    }  # fmt: skip
    assert all(config.ppo.gold == str(tmp_path / "gold" / "adapter") for config in policies)
    assert {config.run.seed for config in policies} == {0, 1} and compare.TOKENS == 64


def test_a_curve_is_what_a_run_s_evaluations_say(tmp_path: Path) -> None:
    line = {"step": 5, "name": "eval", "prompts": 3, "reward": 1.0, "reward_low": 0.5, "gold": 0.2, "cut_share": 0.1}
    (tmp_path / "eval.jsonl").write_text(json.dumps(line) + "\n")
    assert study.curve(tmp_path) == [{key: value for key, value in line.items() if key not in ("name", "prompts")}]


def test_curves_are_added_and_none_is_run_again_but_of_other_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, weights = [], b"1"

    def train(command: list[str], _: Path) -> None:
        run = study.folder_of(command)
        trained.append(run.name)
        members = [run / "members" / f"{n:02}" for n in range(study.MEMBERS)] if run.name == "members" else []
        for folder in (run, *members):
            (folder / "model").mkdir(parents=True, exist_ok=True)
            (folder / "model" / "model.safetensors").write_bytes(weights)
            (folder / "eval.jsonl").write_text(json.dumps({"step": 0, "gold": 0.5, "accuracy": 0.6}) + "\n")

    def all_of_it(seeds: int) -> list[str]:
        trained.clear()
        words = ["study", "--folder", str(tmp_path), "--json", str(out), "--seeds", str(seeds), "--workers", "1"]
        monkeypatch.setattr(sys, "argv", words)
        study.main()
        return [name for name in trained if name.startswith("ppo")]

    out = tmp_path / "out.json"
    monkeypatch.setattr(study, "train", train)
    assert all_of_it(1) == ["ppo-0-0", "ppo-1-0", "ppo-2-0"]
    assert all_of_it(2) == ["ppo-0-1", "ppo-1-1", "ppo-2-1"]
    found = json.loads(out.read_text())
    assert found["accuracy"] == {"gold": 0.6, "00": 0.6, "01": 0.6, "02": 0.6} and len(found["runs"]) == 6
    assert found["runs"]["plain PPO, seed 1"]["curve"] == [{"step": 0, "gold": 0.5}]
    weights = b"2"
    assert len(all_of_it(2)) == 6
