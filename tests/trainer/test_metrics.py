"""A step's figures: means over the global batch, kept back until they are asked for, flagged where not finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rmfast.data.loader import Step, Totals
from rmfast.objectives.reward import SUMS, Statistics
from rmfast.trainer.metrics import MetricQueue


def step(number: int) -> Step:
    totals = Totals(
        groups=4, edges=5, responses=10, weight=4.0, lm_tokens=3, sequence_tokens=100, stored_tokens=60, visible=500
    )
    return Step(number=number, epoch=0.25, packs=[], totals=totals, rows=np.arange(4), padding=0)


def statistics(**sums: float) -> Statistics:
    values = {"loss": 0.75, "ranking_loss": 0.5, "lm_loss": 2.5, "correct": 4, "margin": 2.0, "reward": 3.0} | sums
    return Statistics(torch.tensor([float(values[name]) for name in SUMS]), torch.tensor([1.5, 0.25]))


def test_sums_become_means_over_edges_and_responses() -> None:
    queue = MetricQueue(lm=True)
    queue.push(step(6), statistics(), torch.tensor(2.0), {"pairs": 4})
    (line,) = queue.pop()
    assert line.finite
    assert line.values == {
        "step": 7,
        "epoch": 0.25,
        "loss": 0.75,
        "accuracy": 0.8,
        "margin": pytest.approx(0.4),
        "mean_reward": pytest.approx(0.3),
        "min_reward": -0.25,
        "max_reward": 1.5,
        "grad_norm": 2.0,
        "ranking_loss": 0.5,
        "lm_loss": 2.5,
        "pairs": 4,
    }


def test_figures_of_a_step_go_by_their_names() -> None:
    queue = MetricQueue(lm=False)
    own = {"views": torch.tensor(3), "overlap": torch.tensor(torch.nan)}
    queue.push(step(6), replace(statistics(), figures=own), torch.tensor(2.0), {})
    (line,) = queue.pop()
    assert line.finite and line.values["views"] == 3.0 and np.isnan(line.values["overlap"])
    assert (line.values["grad_norm"], line.values["min_reward"], line.values["loss"]) == (2.0, -0.25, 0.75)


def test_without_lm_loss_its_parts_are_not_logged() -> None:
    queue = MetricQueue(lm=False)
    queue.push(step(0), statistics(), torch.tensor(2.0), {})
    assert not {"ranking_loss", "lm_loss"} & queue.pop()[0].values.keys()


def test_the_newest_are_left_where_asked_and_come_in_order() -> None:
    queue = MetricQueue(lm=False)
    assert queue.pop() == []
    for number in range(3):
        queue.push(step(number), statistics(), torch.tensor(1.0), {})
    assert [line.values["step"] for line in queue.pop(1)] == [1, 2]
    assert queue.pop(1) == []
    assert [line.values["step"] for line in queue.pop()] == [3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["loss", "grad_norm"])
def test_a_loss_or_gradient_that_is_not_finite_is_flagged(bad: float, where: str) -> None:
    queue = MetricQueue(lm=False)
    sums = statistics(loss=bad) if where == "loss" else statistics()
    queue.push(step(0), sums, torch.tensor(bad if where == "grad_norm" else 1.0), {})
    assert not queue.pop()[0].finite
