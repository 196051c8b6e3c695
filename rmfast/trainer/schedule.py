"""Learning-rate schedules as functions of the step."""

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "inverse_sqrt", "constant"]


def learning_rate(step: int, *, peak: float, schedule: Schedule, warmup: int, total: int, floor: float = 0.0) -> float:
    """Learning rate of a step.

    Args:
        step: 0 for the first one.
        peak: reached after the warm-up.
        schedule: "linear" and "cosine" fall to `floor` x peak at `total`, "inverse_sqrt" as sqrt(warmup / step)
            (without a warm-up as sqrt(10,000 / (10,000 + step))).
        warmup: steps of the linear rise. The first step of a rise has rate 0, as in transformers.
        total: steps of the run.
    """
    if step < warmup:
        return peak * step / warmup
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        timescale = warmup or 10_000  # as in transformers
        return peak * math.sqrt(timescale / (step + timescale - warmup))
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    shape = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (floor + (1 - floor) * shape)
