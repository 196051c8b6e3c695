"""What `train_throughput.py` runs in a fresh interpreter: one mode, with the cost of every step, and a step's profile.

Usage: `python benchmarks/train_throughput_worker.py JOB.json MODE OUT.json [breakdown]`. With a breakdown the job's
last two steps are the profiler's, and no figure but the breakdown is of them.
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from packed_baseline import run_packed
from step_profile import ProfiledClock
from vs_trl_worker import Clock, Job, run_rmfast, run_trl, write

Mode = Literal["trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast-graphs", "rmfast"]
# Of Liger's kernels all but this one: it would replace a reward model's forward by a language model's.
LIGER = {"fused_linear_cross_entropy": False}
PROFILED = 2  # steps: the profiler's first, and the one that is broken down
OF_STEPS = ("wall_seconds", "cpu_seconds", "loss", "grad_norm", "computed_tokens", "real_tokens")


def run(job: Job, mode: str, clock: Clock) -> dict[str, Any]:
    """Steps of a mode."""
    if mode in ("rmfast", "rmfast-graphs"):
        return run_rmfast(job, clock, graphs=mode == "rmfast-graphs")
    if mode == "hf-packed":
        return run_packed(job, clock)
    liger = {"use_liger_kernel": True, "liger_kernel_config": LIGER} if mode == "trl-liger" else {}
    return run_trl(job, clock, checkpointing=mode == "trl", **liger)


def main(job_file: str, mode: str, out: str, profile: str | None = None) -> None:
    """Entry point."""
    job = Job(**json.loads(Path(job_file).read_text()))
    if job.threads:
        torch.set_num_threads(job.threads)
    clock = (ProfiledClock if profile else Clock)(job.steps, job.device == "cuda")
    result = run(job, mode, clock)
    if isinstance(clock, ProfiledClock):
        timed = job.steps - PROFILED
        result |= {name: result[name][:timed] for name in OF_STEPS}
        result |= {"ids": result["ids"][: timed * job.pairs_per_step], "breakdown": clock.broken_down()}
    write(result, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
