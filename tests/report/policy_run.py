"""A run folder of a policy as the trainer writes it, with synthetic numbers."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def write_lines(file: Path, rows: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def step_row(step: int, steps: int = 60) -> Row:
    """A step of a run whose reward rises from about 0.1 to 0.9, and whose KL settles near its target."""
    draw, done = np.random.default_rng(step), step / steps
    noise = draw.normal(size=8)
    length = 60 + 25 * done + noise[0]
    kl = 6 * done + 0.3 * abs(noise[1])
    row: Row = {"step": step, "episode": 128 * step, "optim_steps": 4 * step, "lr": 1e-6 * (1 - done / 2)}
    row |= {"loss": 0.02 * noise[2] + 0.3 * math.exp(-3 * done), "num_tokens": 9000 * step}
    row |= {"objective/scores": 0.1 + 0.8 * done + 0.05 * noise[3], "objective/kl": kl, "kl_per_token": kl / length}
    row |= {"objective/rlhf_reward": 0.1 + 0.6 * done, "objective/entropy": 2 * length * (1 - 0.4 * done)}
    row |= {"policy/entropy_avg": 2 * (1 - 0.4 * done), "policy/clipfrac_avg": 0.08 + 0.01 * noise[4]}
    row |= {"val/clipfrac_avg": 0.03 + 0.005 * noise[5], "loss/policy_avg": 0.01 * noise[6] - 0.01}
    row |= {"loss/value_avg": 0.6 * math.exp(-3 * done) + 0.02, "explained_variance": 0.8 - math.exp(-4 * done)}
    row |= {"perplexity": 8 - 3 * done, "entropy_per_token": 2 * (1 - 0.4 * done), "objective/scores_skew": done}
    row |= {"objective/scores_std": 0.5}
    row |= {"kl_coefficient": 0.05 * (1 + done), "first_ratio_gap": 0.0, "sampler_gap": 2e-4 + 1e-5 * noise[7]}
    row |= {"mean_length": length, "cut_share": 0.05 + 0.1 * done, "sampling_share": 0.55, "flat_group_share": 0.01}
    row |= {"tokens_per_second": 5200.0 + 40 * noise[0], "prefix_saved_share": 0.3, "padding_share": 0.02}
    return row | {"critic_warmup": step <= 5, "kept_mass": 1.0, "memory_gib": 3.2}


def eval_row(step: int, steps: int = 60, *, gold: float = 0.4) -> Row:
    done = step / steps
    figures = {"reward": 0.12 + 0.8 * done, "kl": 6 * done, "length": 61 + 24 * done, "gold": 1.0 + gold * done}
    row: Row = {"step": step, "name": "eval"}
    for name, value in figures.items():
        row |= {f"eval_{name}": value, f"eval_{name}_low": value - 0.05, f"eval_{name}_high": value + 0.05}
    return row


def sample_row(number: int) -> Row:
    row = {"prompt": f"Question {number}?", "response": f"Answer {number}.", "stop_reason": "eos"}
    return row | {"reward": 0.1 * number, "gold": 0.05 * number, "kl": 4.0 + number, "length": 10 + number}


def rollout_row(number: int) -> Row:
    samples = [
        {"ids": [5] * (3 + k), "stop_reason": "length" if k else "eos"}
        | {"reward": number + 0.1 * k, "score": 0.0, "kl": 1.5}
        for k in range(2)
    ]
    texts = [f"Sample {number}.{k}" for k in range(2)]
    return {"number": number, "prompt": f"Rollout {number}?", "responses": texts, "edges": [], "samples": samples}


def write_policy_run(path: Path, *, evaluated: bool = True, gold: float = 0.4) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("task: ppo\nrun:\n  seed: 0\n")
    write_lines(path / "metrics.jsonl", (step_row(step) for step in range(1, 61)))
    write_lines(path / "rollouts" / "step-9.jsonl", [rollout_row(100)])
    write_lines(path / "rollouts" / "step-60.jsonl", (rollout_row(number) for number in range(8)))
    if evaluated:
        write_lines(path / "eval.jsonl", (eval_row(step, gold=gold) for step in range(0, 61, 20)))
        write_lines(path / "eval" / "samples-20.jsonl", [sample_row(200)])
        write_lines(path / "eval" / "samples-60.jsonl", (sample_row(number) for number in range(1, 13)))
    return path
