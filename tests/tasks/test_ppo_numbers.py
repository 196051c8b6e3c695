"""Each number of a step of PPO, for each switch, against what its formulas give in fp64 (tests/ppo/dense.py).

What is compared: log-probabilities, values, scores and KL of each answer (rollouts/step-N.jsonl), every figure of
metrics.jsonl and eval.jsonl that is no time and no memory, and the weights after the last step.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.ppo.numbers import TEMPLATE, compare, run, write_models
from tests.runs import read_lines

CASES: dict[str, dict[str, Any]] = {
    "ppo_max": {
        "run__max_steps": 3, "ppo__critic_warmup": 1, "optim__clip": 0.5, "ppo__reference": "reference",
        "ppo__kl_target": 1, "ppo__kl_horizon": 40,
    },
    "ppo": {"ppo__preset": "ppo", "ppo__kl": 0.3, "ppo__reference": "reference", "ppo__temperature": 0.7},
    "messages": {
        "data__chat_template": TEMPLATE, "ppo__critic_warmup": 0, "ppo__gamma": 0.9, "ppo__whiten": True,
        "ppo__epochs": 2, "eval__every": 1, "ppo__gold": "gold", "ppo__kl": 0.4, "ppo__max_new_tokens": 2,
        "ppo__reward_warmup": 0,
    },
    "gae_mask": {
        "ppo__preset": "ppo", "run__max_steps": 3, "ppo__critic": "critic", "ppo__critic_warmup": 1, "ppo__epochs": 2,
        "ppo__kl": 0, "ppo__gamma": 0.9, "ppo__lam": 0.8, "ppo__truncated": "mask", "ppo__value_clip": 0,
        "ppo__whiten": False, "ppo__reward_clip": 0.3, "ppo__critic_lr": 0.01, "optim__schedule": "linear",
        "optim__warmup": 1, "optim__weight_decay": 0.5, "ppo__ptx": 0.3, "ppo__ptx_rows": 3,
    },
    "critic_of_raw_scores": {
        "ppo__preset": "ppo", "ppo__critic": "reward", "ppo__epochs": 1, "ppo__truncated": "bootstrap",
        "ppo__kl_target": 0.7, "ppo__kl_horizon": 40, "ppo__reference": "reference",
    },
    "gae_penalty": {
        "ppo__critic_warmup": 0, "ppo__truncated": "penalty", "ppo__truncated_score": -0.3, "ppo__reward_warmup": 2,
        "ppo__overlong_buffer": 4, "ppo__overlong_penalty": 0.7, "ppo__top_p": 0.8, "ppo__top_k": 9,
        "ppo__temperature": 1.3,
    },
    "rloo_loss_k2": {
        "model__path": "two_ends", "ppo__advantage": "rloo", "ppo__kl_in": "loss", "ppo__kl": 0.4, "ppo__epochs": 2,
        "ppo__truncated": "mask", "ppo__kl_target": 4, "ppo__kl_horizon": 40, "ppo__reference": "reference",
    },
    "grpo_loss_k3": {
        "ppo__advantage": "grpo", "ppo__kl_in": "loss", "ppo__kl_estimator": "k3", "ppo__kl": 0.4, "ppo__epochs": 2,
        "ppo__truncated": "penalty", "ppo__truncated_score": -0.3, "ppo__entropy": 0.1, "ppo__clip": 0.05,
        "ppo__clip_high": 0.4, "ppo__reference": "reference",
    },
    "reinforce_both_k2": {
        "ppo__advantage": "reinforce", "ppo__gamma": 0.9, "ppo__kl_in": "both", "ppo__kl": 0.2, "ppo__whiten": True,
        "ppo__reward_warmup": 0, "ppo__reward_clip": 0, "ppo__reference": "reference", "ppo__min_p": 0.1,
        "ppo__truncated": "mask",
    },
    "rloo_both_k3": {
        "ppo__advantage": "rloo", "ppo__kl_in": "both", "ppo__kl_estimator": "k3", "ppo__kl": 0.2, "ppo__epochs": 3,
        "ppo__max_new_tokens": 3, "ppo__truncated": "mask", "optim__clip": 0, "ppo__repetition_penalty": 1.3,
        "ppo__minibatches": 4,
    },
    "lora": {
        "model__adapter": "lora", "model__lora_rank": 3, "ppo__critic_warmup": 1, "run__max_steps": 3,
        "eval__every": 1, "ppo__gold": "gold", "optim__lr": 3e-2, "ppo__ptx": 0.3, "ppo__ptx_rows": 3,
    },
    "lora_of_one_trunk": {
        "ppo__preset": "ppo", "model__adapter": "lora", "model__lora_rank": 2, "model__lora_rslora": True,
        "model__lora_targets": "[q_proj,up_proj]", "ppo__kl_in": "loss", "ppo__kl": 0.4, "optim__lr": 3e-2,
    },
    "lora_rloo": {
        "model__adapter": "lora", "model__lora_rank": 2, "ppo__advantage": "rloo", "ppo__reference": "reference",
        "ppo__kl": 0.4, "optim__lr": 3e-2,
    },
    "grpo_reward": {
        "ppo__advantage": "grpo", "ppo__kl": 0.3, "ppo__reference": "reference", "ppo__whiten": True,
        "ppo__temperature": 0.3, "ppo__max_new_tokens": 3,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", CASES)
def test_a_run_gives_the_numbers_of_its_formulas(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(tmp_path, models, CASES[name], monkeypatch)
    compare(out)
    learnt = [step for step in read_lines(out / "metrics.jsonl") if not step["critic_warmup"]]
    assert [step["first_ratio_gap"] for step in learnt] == [0.0] * len(learnt)
    if "ppo__reference" not in CASES[name]:
        assert learnt[0]["objective/kl"] == 0.0
