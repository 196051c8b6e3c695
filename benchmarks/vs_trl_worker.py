"""What `vs_trl.py` runs in a fresh interpreter: one trainer over the same rows, with the cost of every step.

Usage: `python benchmarks/vs_trl_worker.py JOB.json MODE OUT.json`; vs_trl.py writes the job and reads the result.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Mode = Literal["trl", "trl-no-checkpointing", "rmfast"]
# What choose_attention answers, in words.
ATTENTION = {
    "auto": "rmfast's kernels (plain torch on a CPU)",
    "flash": "FlashAttention 2 of torch, prompt and responses merged",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What both trainers are given. `model` is a folder with a reward head, `rows` a jsonl file of steps x pairs rows
    in TRL's format, in the order of training; `scratch` may be written to."""

    model: str
    rows: str
    scratch: str
    steps: int
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
    the machine's memory."""
    if cuda:
        return {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return {"peak_bytes": resident_bytes(), "reserved_bytes": None}


def resident_bytes() -> int:
    """Most memory that this process held."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss may be that of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_trl(job: Job, clock: Clock, *, checkpointing: bool, **more: Any) -> dict[str, Any]:
    """TRL's RewardTrainer with its defaults, but for what the job says, fp32 on a CPU, rows in their order, and `more`
    of its config."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    cuda = job.device == "cuda"

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
        gradient_checkpointing=checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
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
    micro = len(computed) // job.steps
    lengths = [len(chosen) + len(rejected) for chosen, rejected in ids]
    return clock.seconds() | {
        "loss": [line["loss"] for line in logged],
        "grad_norm": [line["grad_norm"] for line in logged],
        "computed_tokens": [sum(computed[i : i + micro]) for i in range(0, len(computed), micro)],
        "real_tokens": [sum(lengths[i : i + job.pairs_per_step]) for i in range(0, len(ids), job.pairs_per_step)],
        "ids": ids,
    } | memory(cuda)  # fmt: skip


def rmfast_config(job: Job, *, graphs: bool) -> Any:
    """The defaults of `task: reward` but for what the job says and rows in their order, with CUDA graphs or without."""
    from rmfast.config import Config

    return Config.model_validate({
        "run": {"dir": str(Path(job.scratch) / "rmfast"), "max_steps": job.steps},
        "model": {"path": job.model, "dtype": "bfloat16" if job.device == "cuda" else "float32"},
        "data": {"train": job.rows, "max_length": min(job.max_length, job.tokens_per_pack),
                 "tokens_per_pack": job.tokens_per_pack, "pairs_per_step": job.pairs_per_step, "shuffle": False},
        "optim": {"lr": job.lr},
        "parallel": {"cuda_graphs": graphs},
    })  # fmt: skip


def run_rmfast(job: Job, clock: Clock, *, graphs: bool = False) -> dict[str, Any]:
    """The run of `task: reward`, its engine, loader, loop and choice of attention, without evaluation, checkpoints and
    files."""
    from vs_trl_inputs import open_table

    from rmfast.data.loader import StepLoader
    from rmfast.data.tokenizer import load_tokenizer
    from rmfast.models.hf import read_config
    from rmfast.parallel.world import World
    from rmfast.tasks import reward
    from rmfast.tasks.attention import choose_attention
    from rmfast.trainer.loop import Progress

    class Marked:
        """A loader whose steps the clock marks."""

        def __init__(self, loader: StepLoader) -> None:
            self.loader = loader

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loader, name)

        def __iter__(self) -> Iterator[Any]:
            for step in self.loader:
                clock.mark()
                yield step
            clock.mark()

    class TimedRun(reward.RewardRun):
        def loader(self, first: int) -> Any:
            return Marked(super().loader(first))

    class Lines:
        """Keeps the lines that a run would log."""

        def __init__(self) -> None:
            self.values: list[dict[str, Any]] = []

        def step(self, values: dict[str, Any], _seconds_left: float) -> None:
            self.values.append(values)

    config = rmfast_config(job, graphs=graphs)
    limits = {"max_length": job.max_length, "tokens_per_pack": job.tokens_per_pack}
    _, table = open_table(Path(job.rows), Path(job.model), limits)
    lines = Lines()
    with World() as world:
        run = TimedRun(config, world, read_config(job.model), load_tokenizer(job.model), table, {})
        attention = choose_attention(config, run.decoder_config, table, run.plan, world, None)
        run.engine.attend_with(attention)
        run.log = lines  # type: ignore[assignment]
        run.train(Progress())
    totals = [0] + [line["num_computed_tokens"] for line in lines.values]
    stored = [b - a for a, b in zip(totals[:-1], totals[1:], strict=True)]
    return clock.seconds() | {
        "attention": ATTENTION.get(attention, attention),
        "loss": [line["loss"] for line in lines.values],
        "grad_norm": [line["grad_norm"] for line in lines.values],
        "computed_tokens": [n / (1 - line["padding_share"]) for n, line in zip(stored, lines.values, strict=True)],
        "real_tokens": stored,
        "ids": [table.sequences_of(group) for group in range(len(table))],
    } | memory(job.device == "cuda")  # fmt: skip


def main(job_file: str, mode: str, out: str) -> None:
    """Entry point."""
    job = Job(**json.loads(Path(job_file).read_text()))
    if job.threads:
        torch.set_num_threads(job.threads)
    clock = Clock(job.steps, job.device == "cuda")
    result = run_rmfast(job, clock) if mode == "rmfast" else run_trl(job, clock, checkpointing=mode == "trl")
    write(result, Path(out))


def write(result: dict[str, Any], out: Path) -> None:
    """What a mode gave, with the threads that it had, as JSON; replaces the file at once."""
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(result | {"threads": torch.get_num_threads()}))
    os.replace(partial, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
