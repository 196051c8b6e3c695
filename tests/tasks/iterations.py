"""A tiny iteration for tests: its data, its command line, and what it made."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import arguments, write_model, write_rows


def write_inputs(folder: Path) -> Path:
    """A model, a reward model that only watches, pairs, held-out ones, and prompts of which each round samples some."""
    write_model(folder / "model", layers=1)
    write_model(folder / "gold", layers=1, seed=5)
    write_rows(folder / "rows.jsonl", 24)
    write_rows(folder / "eval.jsonl", 8, seed=1)
    return folder


def command(folder: Path, run: str, **more: object) -> list[str]:
    """A round of 2 steps a stage, with 3 samples to a prompt."""
    keys: dict[str, object] = {
        "task": "iterate",
        "model__path": folder / "model",
        "data__train": folder / "rows.jsonl",
        "data__eval": folder / "eval.jsonl",
        "data__cache": folder / "cache",
        "data__pairs_per_step": 8,
        "data__max_length": 48,
        "data__tokens_per_pack": 96,
        "ppo__prompts": folder / "rows.jsonl",
        "ppo__eval_prompts": folder / "eval.jsonl",
        "ppo__prompts_per_step": 4,
        "ppo__samples": 2,
        "ppo__max_new_tokens": 6,
        "ppo__critic_warmup": 0,
        "ppo__truncated": "zero",
        "meta__k": 3,
        "meta__rho": 0.1,
        "iterate__rounds": 1,
        "iterate__prompts": 16,
        "optim__lr": 1e-3,
        "iterate__stages__ppo__optim__lr": 1e-2,
        "run__dir": folder / run,
        "run__max_steps": 2,
        "run__tensorboard": False,
        "checkpoint__every": 1,
        "parallel__timeout_minutes": 1,
    }
    return arguments(**(keys | more))


def no_plots(patch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest of a tiny run."""
    patch.setattr("rmfast.tasks.build.training.write_report", lambda folder: None)
    patch.setattr("rmfast.report.rounds.page.rounds_plots", lambda found: [])


def made(run: Path) -> dict[str, dict[str, str]]:
    """What each stage made, by its checksums."""
    stages = json.loads((run / "iterate.json").read_text())["stages"]
    return {name: stage["made"] for name, stage in stages.items()}


def figures(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report" / "rounds.json").read_text()))
