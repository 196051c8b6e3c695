"""The loop: steps, evaluations and checkpoints in their order, and what is logged of them."""

import time
from typing import Any

from rmfast.errors import Interrupted, LimitReached
from rmfast.trainer.learner import Learner
from rmfast.trainer.memory import memory_figures
from rmfast.trainer.metric_queue import MetricQueue
from rmfast.trainer.run import Run
from rmfast.trainer.skips import Skips
from rmfast.trainer.stop import StopRequest


def fit(run: Run, learner: Learner, stop: StopRequest | None = None) -> dict[str, Any]:
    """Take the steps that are left, save, and evaluate what was trained. All ranks call it.

    Args:
        stop: asked after each step.

    Returns:
        Metrics of the last evaluation.

    Raises:
        Interrupted: `stop` or a signal said so; a checkpoint was saved.
        LimitReached: a limit of the config was passed; a checkpoint of the step before was saved.
        RunError: a step whose figures are not finite, beyond `max_skipped` in a row. It changed nothing.
    """
    with run.logging(learner.total):
        if run.step == 0 and run.options.evaluate_first:
            run.evaluate(learner)
        if run.step < learner.total:
            take_steps(run, learner, stop)
            run.save(learner, last=True)
            if stop is not None and stop.asked_now():
                raise stop.interrupted(f"the last step, {learner.total},")
        return run.evaluate(learner, final=True)


def take_steps(run: Run, learner: Learner, stop: StopRequest | None = None) -> None:
    """The steps that are left, with the evaluations and checkpoints between them; see `fit`."""
    options, total, begin = run.options, learner.total, run.step
    queue, clock, skips = MetricQueue(), _Clock(total), Skips(options.max_skipped, run.log is not None)

    def drain(leave: int, extra: dict[str, Any] | None = None) -> None:
        for line in queue.pop(leave):
            skips.check(line)
            if run.log is not None:
                run.log.step(line.values | (extra or {}), clock.left(line.values["step"]))

    def cut_off(owes_evaluation: bool = False) -> None:
        drain(0)
        run.owes_evaluation = owes_evaluation
        run.save(learner, last=True)

    if run.owes_evaluation:
        run.evaluate(learner)
        run.owes_evaluation = False
        clock.restart()
    for number in range(run.step, total):
        try:
            figures = learner.step(number)
        except (Interrupted, LimitReached):  # of a step that had not begun to learn
            if number > begin:
                cut_off()
            raise
        run.step = done = number + 1
        seconds = clock.tick()
        rates = {name: None if amount is None else amount / seconds for name, amount in figures.amounts.items()}
        queue.push(figures, {"step": done, "step_seconds": seconds} | rates | memory_figures(run.world.device))
        drain(1)
        run.saver.report()
        evaluating = done < total and run.due(done)
        if stop is not None and done < total and stop.asked():
            cut_off(owes_evaluation=evaluating)  # it may take longer than there is time
            raise stop.interrupted(f"step {done} of {total}")
        saving = options.checkpoint_every is not None and done % options.checkpoint_every == 0 and done < total
        if evaluating or saving:
            try:
                metrics = run.evaluate(learner) if evaluating else None
            except Interrupted:
                cut_off(owes_evaluation=True)
                raise
            drain(0, metrics)
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
