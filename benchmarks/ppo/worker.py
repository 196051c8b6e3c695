"""Iterations of rmfast's task ppo, for `benchmarks.ppo.compare`: `python -m benchmarks.ppo.worker JOB.json`.

An iteration begins when a line comes on stdin; what it took goes to stdout as a line of JSON.
"""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rmfast.config import load_config
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import open_prompts
from rmfast.tasks.ppo import open_ppo
from rmfast.trainer.ppo.learner import PPOLearner
from tests.runs import arguments


def peak() -> int:
    """The most bytes that this process had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(line: Any) -> None:
    """Write a line of JSON, or a word."""
    print(line if isinstance(line, str) else json.dumps(line), file=sys.__stdout__, flush=True)


def keys(job: dict[str, Any]) -> dict[str, Any]:
    """The settings that TRL's trainer has there too: plain PPO, one epoch of one minibatch, a critic that begins as
    the reward model."""
    folder = Path(job["folder"])
    rows = folder / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt_ids": ids}) + "\n" for ids in job["prompts"]), encoding="utf-8")
    return {
        "task": "ppo", "model__path": job["policy"], "ppo__preset": "ppo", "ppo__reward": job["reward"],
        "ppo__critic": "reward", "ppo__prompts": rows, "ppo__prompts_per_step": len(job["prompts"]),
        "ppo__samples": job["samples"], "ppo__max_new_tokens": job["tokens"], "ppo__epochs": 1, "ppo__minibatches": 1,
        "ppo__critic_lr": job["rate"], "optim__lr": job["rate"], "optim__schedule": "constant",
        "data__tokens_per_pack": job["pack"], "data__cache": folder / "cache", "run__dir": folder / "run",
        "run__max_steps": job["iterations"], "run__threads": 1, "run__tensorboard": False,
        "rollout__rows": len(job["prompts"]) * job["samples"],
    }  # fmt: skip


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    imported = peak()
    config, world = load_config(arguments(**keys(job))), World(1)
    Path(config.run.dir).mkdir()
    with contextlib.redirect_stdout(sys.stderr):
        learner = open_ppo(config, world, open_prompts(config, world)).learner
        assert isinstance(learner, PPOLearner)
        models = learner.models
        engines = (models.policy, models.critic, models.reference, models.reward.scorers[0].held)
        counts = [engine.parameter_counts() for engine in engines if isinstance(engine, NativeEngine)]
        trained = sum(count for _, count in counts)
        state = 16 * trained + 4 * sum(whole - count for whole, count in counts)
        say({"state_bytes": state, "imported_bytes": imported, "versions": {"torch": torch.__version__}})
        for number in range(job["iterations"]):
            say("ready")
            sys.stdin.readline()
            began = time.process_time()
            figures = learner.step(number)
            values = figures.line({name: tensor.tolist() for name, tensor in figures.device.items()}).values
            kept = {key: values[key] for key in ("objective/kl", "loss/policy_avg", "loss/value_avg", "mean_length")}
            say({"cpu_seconds": time.process_time() - began, "peak_bytes": peak()} | kept)


if __name__ == "__main__":
    main()
