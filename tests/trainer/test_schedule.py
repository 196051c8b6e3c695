"""Learning rates equal those of transformers where both define the schedule alike."""

import pytest
import torch
from transformers import get_scheduler

from rmfast.trainer.schedule import Schedule, learning_rate

PEAK, TOTAL = 3e-4, 40


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        ("linear", "linear"),
        ("cosine", "cosine"),
        ("constant", "constant_with_warmup"),
        ("inverse_sqrt", "inverse_sqrt"),
    ],
)
def test_equal_to_transformers(schedule: Schedule, theirs: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=TOTAL)
    for step in range(TOTAL):
        ours = learning_rate(step, peak=PEAK, schedule=schedule, warmup=warmup, total=TOTAL)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=0), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_floor_is_where_the_schedule_ends(schedule: Schedule) -> None:
    def rate(step: int) -> float:
        return learning_rate(step, peak=2.0, schedule=schedule, warmup=4, total=20, floor=0.25)

    assert [rate(0), rate(2), rate(4)] == [0.0, 1.0, 2.0]
    assert rate(12) == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert rate(20) == rate(30) == pytest.approx(0.5)
    falling = [rate(step) for step in range(4, 21)]
    assert falling == sorted(falling, reverse=True)
