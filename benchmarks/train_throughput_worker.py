"""What `train_throughput.py` runs in a fresh interpreter: one mode, with the cost of every step, or a step's profile.

Usage: `python benchmarks/train_throughput_worker.py JOB.json MODE OUT.json [breakdown]`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
import vs_trl_worker
from packed_baseline import run_packed
from step_profile import ProfiledClock, breakdown
from vs_trl_worker import Clock, Job, run_rmfast, run_trl

Mode = Literal["trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast"]
# Of Liger's kernels all but this one: it would replace a reward model's forward by a language model's.
LIGER = {"fused_linear_cross_entropy": False}


def run_trl_with(job: Job, *, checkpointing: bool, **more: Any) -> dict[str, Any]:
    """vs_trl's run of TRL with more of its config set."""
    import trl

    config = trl.RewardConfig
    with mock.patch.object(trl, "RewardConfig", lambda **given: config(**given, **more)):
        return run_trl(job, checkpointing=checkpointing)


def run(job: Job, mode: str) -> dict[str, Any]:
    """Steps of a mode."""
    if mode == "rmfast":
        return run_rmfast(job)
    if mode == "hf-packed":
        return run_packed(job)
    if mode == "trl-liger":
        return run_trl_with(job, checkpointing=False, use_liger_kernel=True, liger_kernel_config=LIGER)
    return run_trl(job, checkpointing=mode == "trl")


def main(job_file: str, mode: str, out: str, profile: str | None = None) -> None:
    """Entry point."""
    job = Job(**json.loads(Path(job_file).read_text()))
    if job.threads:
        torch.set_num_threads(job.threads)
    with mock.patch.object(vs_trl_worker, "Clock", ProfiledClock if profile else Clock):
        result = run(job, mode)
    if profile:
        assert ProfiledClock.last is not None
        result["breakdown"] = breakdown(ProfiledClock.last)
    result["threads"] = torch.get_num_threads()
    aside = Path(out).with_suffix(".partial")
    aside.write_text(json.dumps(result))
    os.replace(aside, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
