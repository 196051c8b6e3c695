"""A step's figures: fetched together, kept back until they are asked for; what a learner of pairs makes of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rmfast.data.loader import Step, Totals
from rmfast.objectives.base import Statistics
from rmfast.objectives.reward import RewardObjective
from rmfast.trainer.batch_learner import Share
from rmfast.trainer.learner import Figures, Line
from rmfast.trainer.metric_queue import MetricQueue
from tests.trainer.test_loop import learner_of


class Loader:
    """What a learner of pairs asks of a loader beside its steps."""

    total, predicts = 9, None

    def labels(self, step: Step) -> str:
        return "rows.jsonl:3"


class Engine:
    def __init__(self, norm: float) -> None:
        self.norm = norm

    def optimizer_step(self, lr: float) -> Tensor:
        return torch.tensor(self.norm)


def line_of(*, norm: float = 2.0, lm: float = 0.0, figures: dict[str, Tensor] | None = None, **sums: float) -> Line:
    """What is logged of a step of these figures."""
    values = {"loss": 0.75, "ranking_loss": 0.5, "lm_loss": 2.5, "correct": 4.0, "margin": 2.0, "reward": 3.0} | sums
    learner = learner_of(Engine(norm), Loader())  # type: ignore[arg-type]
    learner.objective = RewardObjective(lm=lm)
    totals = Totals(
        groups=4, edges=5, responses=10, weight=4.0, lm_tokens=3, sequence_tokens=100, stored_tokens=60, visible=500
    )
    step = Step(number=6, epoch=0.25, packs=[], totals=totals, rows=np.arange(4), padding=0)
    extremes = {"max_reward": torch.tensor(1.5), "negative_reward": torch.tensor(0.25)}
    of_sums = {name: torch.tensor(value) for name, value in values.items()}
    statistics = Statistics(of_sums, extremes, figures or {})
    queue = MetricQueue()
    queue.push(learner.update([Share(Loader(), step)], statistics), {"step": 7})  # type: ignore[arg-type]
    (line,) = queue.pop()
    return line


def test_sums_become_means_over_edges_and_responses() -> None:
    line = line_of(lm=0.5)
    assert line.error is None
    assert line.values == {
        "step": 7,
        "epoch": 0.25,
        "loss": 0.75,
        "accuracy": 0.8,
        "margin": pytest.approx(0.4),
        "mean_reward": pytest.approx(0.3),
        "min_reward": -0.25,
        "max_reward": 1.5,
        "ranking_loss": 0.5,
        "lm_loss": 2.5,
        "grad_norm": 2.0,
        "learning_rate": 1e-3,
        "num_tokens": 100,
        "num_computed_tokens": 60,
        "pairs": 4,
        "padding_share": 0.0,
        "prefix_saved_share": 0.4,
    }


def test_figures_of_a_step_go_by_their_names() -> None:
    line = line_of(figures={"views": torch.tensor(3), "overlap": torch.tensor(torch.nan)})
    assert line.error is None and line.values["views"] == 3.0 and np.isnan(line.values["overlap"])
    assert (line.values["grad_norm"], line.values["min_reward"], line.values["loss"]) == (2.0, -0.25, 0.75)


def test_without_lm_loss_its_parts_are_not_logged() -> None:
    assert not {"ranking_loss", "lm_loss"} & line_of().values.keys()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["loss", "norm"])
def test_a_loss_or_gradient_that_is_not_finite_is_an_error_that_names_rows(bad: float, where: str) -> None:
    line = line_of(**{where: bad})
    assert line.error is not None and "Rows: rows.jsonl:3. Lower optim.lr" in line.error
    assert line.values["loss"] is None and line.values["grad_norm"] is None and line.values["pairs"] == 4


def test_the_newest_are_left_where_asked_and_come_in_order() -> None:
    queue = MetricQueue()
    assert queue.pop() == []
    for number in range(3):
        figures = {"rows": torch.tensor([[1.0, 2.0], [3.0, number]]), "count": torch.tensor(number)}
        queue.push(Figures(device=figures, line=Line), {"step": number + 1})
    assert [line.values for line in queue.pop(1)] == [
        {"step": n + 1, "rows": [[1.0, 2.0], [3.0, float(n)]], "count": n} for n in (0, 1)
    ]
    assert queue.pop(1) == []
    assert [line.values["step"] for line in queue.pop()] == [3]
