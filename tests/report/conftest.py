"""A run folder as the trainer writes it, with synthetic numbers."""

import json
import math

import numpy as np
import pytest

from rmfast.evaluation.metrics import pairwise_metrics

EDGES = 120


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def train_row(step, **change):
    row = {"step": step, "loss": 0.7 - step / 200, "accuracy": 0.5 + step / 200, "margin": step / 50}
    row |= {"mean_reward": 0.1, "min_reward": -2.0, "max_reward": 2.0, "grad_norm": 1.5, "learning_rate": 1e-4}
    row |= {"epoch": step / 20, "num_tokens": 5000 * step, "tokens_per_second": 5000.0 + step, "pairs_per_second": 14.0}
    row |= {"mfu": None, "padding_share": 0.02, "prefix_saved_share": 0.35, "memory_gib": 1.0, "step_seconds": 1.0}
    return row | change


@pytest.fixture
def scored():
    """Scores [2 E], better, worse [E], lengths, labels [2 E]; the model ranks about two thirds right."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0.6, 1, EDGES), rng.normal(0, 1, EDGES)])
    labels = np.array([f"test.jsonl:{1 + index % EDGES}" for index in range(2 * EDGES)])
    lengths = rng.integers(5, 200, 2 * EDGES)
    return {
        "scores": scores,
        "better": np.arange(EDGES),
        "worse": np.arange(EDGES, 2 * EDGES),
        "lengths": lengths,
        "labels": labels,
    }


@pytest.fixture
def eval_row(scored):
    metrics = pairwise_metrics(scored["scores"], scored["better"], scored["worse"], lengths=scored["lengths"])
    clean = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in metrics.items()}
    return {"step": 20, "name": "hh"} | {f"eval_{key}": value for key, value in clean.items()}


@pytest.fixture
def run_dir(tmp_path, scored, eval_row):
    path = tmp_path / "run"
    (path / "eval").mkdir(parents=True)
    (path / "config.yaml").write_text("task: reward\nrun:\n  seed: 0\n")
    (path / "metrics.jsonl").write_text(lines(train_row(step) for step in range(1, 21)))
    (path / "eval.jsonl").write_text(lines([eval_row | {"step": 10, "eval_accuracy": 0.55}, eval_row]))
    np.savez(path / "eval" / "hh-final.npz", **scored)
    return path
