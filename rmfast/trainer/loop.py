"""The loop: steps, evaluations and checkpoints in their order, and what is logged of them."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rmfast.data.loader import Step, StepLoader
from rmfast.errors import RunError
from rmfast.objectives.reward import Statistics
from rmfast.parallel.engine import Engine
from rmfast.parallel.schedule import Schedule, learning_rate
from rmfast.trainer.log import RunLog
from rmfast.trainer.metrics import MetricQueue, StepLine
from rmfast.trainer.stop import StopRequest

NAMED_ROWS = 16  # rows that an error names at most


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What the loop needs to know beside its parts; steps count from 1 where they are shown."""

    total: int
    lr: float
    schedule: Schedule
    warmup: int
    floor: float
    evaluate_at: Callable[[int], bool]
    """Whether to evaluate after that many steps, of those before the last."""
    checkpoint_every: int | None
    on_nonfinite: Literal["stop", "skip"]
    seed: int


@dataclass
class Progress:
    """What a resumed run goes on from: steps done, and tokens so far (sequences' as TRL counts; computed ones)."""

    step: int = 0
    num_tokens: int = 0
    num_computed_tokens: int = 0
    owes_evaluation: bool = False
    """Of `step`: the run was asked to stop when it was due."""


def fit(
    engine: Engine,
    loader: StepLoader,
    forward_backward: Callable[[Step], Statistics],
    options: LoopOptions,
    progress: Progress,
    *,
    log: RunLog | None,
    evaluate: Callable[[int], dict[str, Any]],
    save: Callable[[Progress], None],
    flops: Callable[[Step], float],
    peak: float | None,
    lm: bool = False,
    stop: StopRequest | None = None,
) -> None:
    """Run the loader's steps.

    Args:
        forward_backward: leaves the gradients of a step's global batch.
        log: None on ranks other than 0.
        evaluate: of the step it comes after, on all ranks; gives metrics with their eval_ prefix.
        save: writes a checkpoint, on all ranks.
        lm: whether there is an LM loss to show.
        flops: of a step. peak: FLOP/s of all ranks' devices together; None where it is not known.
        stop: asked after each step.

    Raises:
        Interrupted: `stop` said so; a checkpoint was saved.
        RunError: a loss or gradient that is not finite, under on_nonfinite "stop". That step changed nothing.
    """
    queue = MetricQueue(lm=lm)
    clock = _Clock(options.total)

    def drain(leave: int, extra: dict[str, Any] | None = None) -> None:
        for line in queue.pop(leave):
            if not line.finite and options.on_nonfinite == "stop":
                raise RunError(_nonfinite(line, loader))
            if log is not None:
                log.step(_shown(line) | (extra or {}), clock.left(line.values["step"]))

    if progress.owes_evaluation:
        evaluate(progress.step)
        progress.owes_evaluation = False
        clock.restart()
    for step in loader:
        seed_dropout(options.seed, step.number, loader.rank)
        statistics = forward_backward(step)
        lr = learning_rate(
            step.number,
            peak=options.lr,
            schedule=options.schedule,
            warmup=options.warmup,
            total=options.total,
            floor=options.floor,
        )
        norm = engine.optimizer_step(lr)
        progress.step = done = step.number + 1
        progress.num_tokens += sum(part.totals.sequence_tokens for part in step.parts)
        progress.num_computed_tokens += sum(part.totals.stored_tokens for part in step.parts)
        extras = _figures(step, lr, progress, clock.tick(), flops(step), peak, engine.device)
        queue.push(step, statistics, norm, extras)
        drain(1)
        evaluating = done < options.total and options.evaluate_at(done)
        if stop is not None and done < options.total and stop.asked():
            drain(0)
            progress.owes_evaluation = evaluating  # it may take longer than there is time
            save(progress)
            raise stop.interrupted(f"step {done} of {options.total}")
        saving = options.checkpoint_every is not None and done % options.checkpoint_every == 0 and done < options.total
        if evaluating or saving:
            drain(0, evaluate(done) if evaluating else None)
            if saving:
                save(progress)
            clock.restart()
    drain(0)


def seed_dropout(seed: int, step: int, rank: int, stream: Literal[0, 1] = 0) -> None:
    """Dropout of a step depends on these alone, so that a resumed run draws the same; streams do not meet.

    Args:
        stream: 0 for preference pairs, 1 for MetaRM's prompts.
    """
    # torch's generator on the CPU takes the lowest 32 bits: streams must differ there.
    torch.manual_seed((seed * 1_000_003 + step) * 4096 + 2048 * stream + rank)


class _Clock:
    """Seconds of each step, and an estimate of those that are left."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._last = time.perf_counter()
        self._mean: float | None = None

    def tick(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self._mean = seconds if self._mean is None else 0.9 * self._mean + 0.1 * seconds
        return seconds

    def restart(self) -> None:
        """Leave out what came between two steps."""
        self._last = time.perf_counter()

    def left(self, step: int) -> float:
        return (self._total - step) * (self._mean or 0.0)


def _figures(
    step: Step, lr: float, progress: Progress, seconds: float, flops: float, peak: float | None, device: torch.device
) -> dict[str, Any]:
    totals = step.totals
    stored = sum(part.totals.stored_tokens for part in step.parts)
    sequences = sum(part.totals.sequence_tokens for part in step.parts)
    padding = sum(part.padding for part in step.parts)
    return {
        "learning_rate": lr,
        "num_tokens": progress.num_tokens,
        "num_computed_tokens": progress.num_computed_tokens,
        "pairs": totals.groups,
        "step_seconds": seconds,
        "tokens_per_second": stored / seconds,
        "pairs_per_second": totals.groups / seconds,
        "tflops": flops / seconds / 1e12,
        "mfu": None if peak is None else flops / seconds / peak,
        "padding_share": padding / (padding + stored),
        "prefix_saved_share": 1 - stored / sequences,
    } | _memory(device)


def _memory(device: torch.device) -> dict[str, float | None]:
    """Of this process so far: the most that it used, and on a GPU what torch took for that and how often it had to free
    all that it kept before it could take more."""
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        return {
            "memory_gib": stats["allocated_bytes.all.peak"] / 2**30,
            "memory_reserved_gib": stats["reserved_bytes.all.peak"] / 2**30,
            "alloc_retries": stats["num_alloc_retries"],
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = peak if sys.platform == "darwin" else peak << 10
    return {"memory_gib": peak / 2**30, "memory_reserved_gib": None, "alloc_retries": None}


def _shown(line: StepLine) -> dict[str, Any]:
    """A line's values; of a skipped step nothing that its loss touched is a number."""
    if line.finite:
        return line.values
    nonfinite = ("loss", "margin", "mean_reward", "min_reward", "max_reward", "grad_norm", "accuracy")
    return {k: None if k in nonfinite or not _finite(v) else v for k, v in line.values.items()} | {"skipped": True}


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _nonfinite(line: StepLine, loader: StepLoader) -> str:
    rows = _labels(line.step, loader)
    if line.step.meta is not None and loader.meta is not None:
        rows += f"; MetaRM's prompts: {_labels(line.step.meta, loader.meta)}"
    return (
        f"step {line.values['step']}: loss {line.values['loss']} and gradient norm {line.values['grad_norm']} are not "
        f"both finite; the step changed nothing. Rows: {rows}. Lower optim.lr, look at these rows, or "
        "set optim.on_nonfinite to skip"
    )


def _labels(step: Step, loader: StepLoader) -> str:
    rows = [loader.table.label(int(g)) for g in step.rows[:NAMED_ROWS]]
    more = f" and {len(step.rows) - NAMED_ROWS} more" if len(step.rows) > NAMED_ROWS else ""
    return f"{', '.join(rows)}{more}"
