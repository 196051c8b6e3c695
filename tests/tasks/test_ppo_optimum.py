"""The whole command reaches a known optimum, as transformers reads the exported policy over all answers. The other
cases and the planted mistakes: `python -m benchmarks.ppo_optimum`."""

from dataclasses import replace
from pathlib import Path

from benchmarks.ppo_optimum import RLOO, is_near, run


def test_rloo_with_kl_in_the_reward_reaches_the_closed_form(tmp_path: Path) -> None:
    result = run(replace(RLOO, keys={**RLOO.keys, "ppo__samples": 48, "run__max_steps": 60}), 1, tmp_path)
    assert is_near(result), result


def test_a_policy_that_did_not_learn_is_not_near(tmp_path: Path) -> None:
    result = run(
        replace(RLOO, keys={**RLOO.keys, "ppo__samples": 2, "run__max_steps": 1, "optim__warmup": 0}), 1, tmp_path
    )
    assert not is_near(result) and result["missing"] > 0.9
