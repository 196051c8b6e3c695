"""The loop: steps, evaluations and checkpoints in their order, and what is logged of them."""

import resource
import sys
import time
from typing import Any

import torch

from rmfast.errors import RunError
from rmfast.trainer.learner import Learner
from rmfast.trainer.metric_queue import MetricQueue
from rmfast.trainer.run import Run
from rmfast.trainer.stop import StopRequest


def fit(run: Run, learner: Learner, stop: StopRequest | None = None) -> dict[str, Any]:
    """Take the steps that are left, save, and evaluate what was trained. All ranks call it.

    Args:
        stop: asked after each step.

    Returns:
        Metrics of the last evaluation.

    Raises:
        Interrupted: `stop` said so; a checkpoint was saved.
        RunError: a step whose figures are not finite, under `stop_on_nonfinite`. It changed nothing.
    """
    with run.logging(learner.total):
        if run.step == 0 and run.options.evaluate_first:
            run.evaluate(learner)
        if run.step < learner.total:
            take_steps(run, learner, stop)
            run.save(learner)
            if stop is not None and stop.asked_now():
                raise stop.interrupted(f"the last step, {learner.total},")
        return run.evaluate(learner, final=True)


def take_steps(run: Run, learner: Learner, stop: StopRequest | None = None) -> None:
    """The steps that are left, with the evaluations and checkpoints between them; see `fit`."""
    options, total = run.options, learner.total
    queue, clock = MetricQueue(), _Clock(total)

    def drain(leave: int, extra: dict[str, Any] | None = None) -> None:
        for line in queue.pop(leave):
            if line.error is not None and options.stop_on_nonfinite:
                raise RunError(f"step {line.values['step']}: {line.error}")
            if run.log is not None:
                run.log.step(line.values | (extra or {}), clock.left(line.values["step"]))

    if run.owes_evaluation:
        run.evaluate(learner)
        run.owes_evaluation = False
        clock.restart()
    for number in range(run.step, total):
        figures = learner.step(number)
        run.step = done = number + 1
        seconds = clock.tick()
        rates = {name: None if amount is None else amount / seconds for name, amount in figures.amounts.items()}
        queue.push(figures, {"step": done, "step_seconds": seconds} | rates | _memory(run.world.device))
        drain(1)
        evaluating = done < total and run.due(done)
        if stop is not None and done < total and stop.asked():
            drain(0)
            run.owes_evaluation = evaluating  # it may take longer than there is time
            run.save(learner)
            raise stop.interrupted(f"step {done} of {total}")
        saving = options.checkpoint_every is not None and done % options.checkpoint_every == 0 and done < total
        if evaluating or saving:
            drain(0, run.evaluate(learner) if evaluating else None)
            if saving:
                run.save(learner)
            clock.restart()
    drain(0)


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
