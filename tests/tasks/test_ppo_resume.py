"""A run of PPO that is killed in any phase goes on to the same bits, and draws no answer twice."""

import re
from pathlib import Path

import pytest

from tests.ppo.tiny import assert_same_run, command, write_inputs
from tests.runs import Case, launch

KILLS = {
    "draw:9": "draw _begin",  # three of the reward warm-up's prompts, after those of the evaluation before step 1
    "draw:4": "draw",  # step 1, with two prompts done
    "read:5": "read score",  # step 1's answers
    "publish:7": "publish keep",  # after the config and two logs, which are written again
    "step:3": "step _train",  # the critic's, step 1
    "signal draw:2": "rename",  # step 2, with two prompts done: step 1 is saved
    "step:3 ": "step _train",  # the policy's, step 2
    "draw:4 ": "draw evaluate",  # after step 2
    "manifest:1": "manifest save",
    "step:13": "step _train",  # step 3, after the checkpoint of step 2
    "signal draw:3": "rename",  # the last evaluation
    "publish:6": "publish export",
    "none:0": "publish",
}
"""Where each start is killed, and which point that is."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("ppo"))


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_phase_goes_on_to_the_same_bits(folder: Path) -> None:
    adapts = {"ppo__kl_target": 1, "ppo__kl_horizon": 50}
    cases = [Case(f"{i}", command(folder, "killed", **adapts), kill.strip()) for i, kill in enumerate(KILLS)]
    codes = launch(folder / "logs", [*cases, Case("whole", command(folder, "whole", **adapts), "none:0")])
    logs = [(folder / "logs" / f"{case.name}-0.log").read_text() for case in cases]
    points = [re.findall("^point (.*)$", log, re.M)[-1] for log in logs]
    assert points == list(KILLS.values())
    assert [codes[case.name] for case in cases] == [
        [0 if "signal" in kill or kill == "none:0" else -9] for kill in KILLS
    ]
    assert ["resumed from step" in log for log in logs] == [False] * 6 + [True] * 7
    assert_same_run(folder / "killed", folder / "whole")
    drawn = sorted(re.findall(r"^drew (\d+)$", "".join(logs), re.M))
    whole = re.findall(r"^drew (\d+)$", (folder / "logs" / "whole-0.log").read_text(), re.M)
    assert len(whole) == 6 * 3 + 4 * 4 and drawn == sorted(whole)
