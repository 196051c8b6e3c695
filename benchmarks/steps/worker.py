"""One mode in an interpreter of its own: steps over the job's rows, with the cost of each.

Usage: `python -m benchmarks.steps.worker JOB.json OUT.json`; compare.py writes the job and reads the result.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.origin import write_json

Mode = Literal["trl", "trl-no-checkpointing", "trl-tuned", "trl-liger", "hf-packed", "rmfast-graphs", "rmfast"]
# Of Liger's kernels all but this one: it would replace a reward model's forward by a language model's.
LIGER = {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": False}}
PROFILED = 2  # last steps of a job with a breakdown: the profiler's first, and the one that is broken down
OF_STEPS = ("wall_seconds", "cpu_seconds", "loss", "grad_norm", "computed_tokens", "real_tokens")
ATTENTION = {
    "kernel": "rmfast's kernels (plain torch on a CPU)",
    "flash": "FlashAttention 2, prompt and responses merged",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a mode is given. `model` is a folder with a reward head, `rows` a jsonl file of steps x pairs rows in TRL's
    format, in the order of training; `scratch` may be written to. `breakdown`: the last PROFILED steps are profiled."""

    mode: Mode
    model: str
    rows: str
    scratch: str
    steps: int
    breakdown: bool
    pairs_per_step: int
    micro_batch: int
    tokens_per_pack: int
    max_length: int
    lr: float
    device: Literal["cpu", "cuda"]
    threads: int | None


class Clock:
    """Wall and CPU seconds at the start of every step and the end of the last; CPU is user + system, all threads.

    On a GPU a step's wall seconds are those between two events in its queue: the host, which nothing stops between
    steps, may run ahead, and its own times would make the first ones short and the last one long.
    """

    def __init__(self, steps: int, cuda: bool) -> None:
        self.steps, self.cuda = steps, cuda
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """A step begins, or the last one has ended."""
        if self.cuda:
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of each step, `steps` of each kind."""
        pairs = {"wall_seconds": self.wall, "cpu_seconds": self.cpu}
        found = {name: [b - a for a, b in zip(t[:-1], t[1:], strict=True)] for name, t in pairs.items()}
        if self.cuda:
            torch.cuda.synchronize()
            between = zip(self.events[:-1], self.events[1:], strict=True)
            found["wall_seconds"] = [1e-3 * begin.elapsed_time(end) for begin, end in between]
        return found


def memory(cuda: bool) -> dict[str, int | None]:
    """Most bytes that torch allocated on the GPU and those that it reserved for that, or most that this process held of
    the machine's memory (Linux: ru_maxrss may be that of the process that started this one)."""
    if cuda:
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM"))
    return {"peak_bytes": int(line.split()[1]) << 10, "reserved_bytes": None}


def run_trl(job: Job, clock: Clock) -> dict[str, Any]:
    """TRL's RewardTrainer with its defaults, but for what the job says, fp32 on a CPU and rows in their order."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    class Marks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.mark()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == job.steps:
                clock.mark()

    config = RewardConfig(
        output_dir=str(Path(job.scratch) / "trl"),
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.pairs_per_step // job.micro_batch,
        max_steps=job.steps,
        learning_rate=job.lr,
        max_length=job.max_length,
        gradient_checkpointing=job.mode == "trl",
        bf16=clock.cuda,
        use_cpu=not clock.cuda,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(LIGER if job.mode == "trl-liger" else {}),
    )
    rows = [json.loads(line) for line in Path(job.rows).read_text(encoding="utf-8").splitlines()]
    trainer: Any = RewardTrainer(
        model=job.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.model),
        callbacks=[Marks()],
    )
    computed: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda _module, _args, inputs: computed.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    ids = [[row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset]
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    micro, pairs = len(computed) // job.steps, job.pairs_per_step
    lengths = [len(chosen) + len(rejected) for chosen, rejected in ids]
    return {
        "loss": [line["loss"] for line in logged],
        "grad_norm": [line["grad_norm"] for line in logged],
        "computed_tokens": [sum(computed[i : i + micro]) for i in range(0, len(computed), micro)],
        "real_tokens": [sum(lengths[i : i + pairs]) for i in range(0, len(ids), pairs)],
        "ids": ids,
    }


def rmfast_config(job: Job) -> Any:
    """The defaults of `task: reward` but for what the job says and rows in their order."""
    from rmfast.config import Config

    return Config.model_validate({
        "run": {"dir": str(Path(job.scratch) / "rmfast"), "max_steps": job.steps},
        "model": {"path": job.model, "dtype": "bfloat16" if job.device == "cuda" else "float32"},
        "data": {"train": job.rows, "max_length": min(job.max_length, job.tokens_per_pack),
                 "tokens_per_pack": job.tokens_per_pack, "pairs_per_step": job.pairs_per_step, "shuffle": False},
        "optim": {"lr": job.lr},
        "parallel": {"cuda_graphs": job.mode == "rmfast-graphs"},
    })  # fmt: skip


def run_rmfast(job: Job, clock: Clock) -> dict[str, Any]:
    """The run of `task: reward` with its choice of attention, without evaluation, checkpoints and files."""
    from benchmarks.runs import open_run
    from benchmarks.steps.inputs import open_table
    from rmfast.parallel.world import World

    limits = {"max_length": job.max_length, "tokens_per_pack": job.tokens_per_pack}
    _, table = open_table(Path(job.rows), Path(job.model), limits)
    config = rmfast_config(job)
    with World() as world:
        lines = open_run(config, world, table).measure(clock.mark)
    totals = [0] + [line["num_computed_tokens"] for line in lines]
    stored = [b - a for a, b in zip(totals[:-1], totals[1:], strict=True)]
    return {
        "attention": ATTENTION[config.model.attention],
        "loss": [line["loss"] for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "computed_tokens": [n / (1 - line["padding_share"]) for n, line in zip(stored, lines, strict=True)],
        "real_tokens": stored,
        "ids": [table.sequences_of(group) for group in range(len(table))],
    }


def digests(ids: list[Any], pairs: int) -> list[str]:
    """A digest of the token ids of each step's `pairs` pairs, whatever their order in the step."""
    steps = [sorted(ids[i : i + pairs]) for i in range(0, len(ids), pairs)]
    return [hashlib.sha256(json.dumps(step).encode()).hexdigest()[:16] for step in steps]


def run(job: Job) -> dict[str, Any]:
    """Everything that is measured of a mode, its timed steps alone."""
    from benchmarks.steps.hf_packed import run_packed
    from benchmarks.steps.profile import ProfiledClock

    if job.threads:
        torch.set_num_threads(job.threads)
    cuda = job.device == "cuda"
    clock = ProfiledClock(job.steps, cuda) if job.breakdown else Clock(job.steps, cuda)
    runs = {"hf-packed": run_packed, "rmfast": run_rmfast, "rmfast-graphs": run_rmfast}
    result = runs.get(job.mode, run_trl)(job, clock)
    result |= clock.seconds() | memory(cuda) | {"threads": torch.get_num_threads()}
    result["steps"] = digests(result.pop("ids"), job.pairs_per_step)
    if isinstance(clock, ProfiledClock):
        result |= {name: result[name][: job.steps - PROFILED] for name in (*OF_STEPS, "steps")}
        result["breakdown"] = clock.broken_down()
    return result


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), run(Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))), None)
