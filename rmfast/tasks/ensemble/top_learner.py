"""Steps of members with top layers: `TopEngine`'s, with each member's order, learning rate and log."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from rmfast.data.loader import BuiltAhead
from rmfast.parallel.engine import ReadRows, Shard
from rmfast.tasks.ensemble.head_learner import members_line
from rmfast.tasks.ensemble.top_batch import TopBatch
from rmfast.tasks.ensemble.top_engine import TopEngine
from rmfast.trainer.dropout import seed_dropout
from rmfast.trainer.learner import Evaluation, Figures


class Batches(Protocol):
    """Every step of all members; `totals` are how many each takes."""

    totals: list[int]

    def __call__(self, number: int) -> TopBatch: ...


class TopLearner:
    """Members that learn together; see `Learner`.

    Args:
        rates: learning rate of each member's steps. seed: of dropout.
    """

    def __init__(
        self,
        engine: TopEngine,
        batches: Batches,
        rates: Sequence[Callable[[int], float]],
        *,
        seed: int,
        evaluate: Callable[[], list[Evaluation]],
    ) -> None:
        self.engine, self.totals, self.rates, self.seed = engine, batches.totals, list(rates), seed
        self.total = max(self.totals)
        self.counters: dict[str, int] = {}
        self._evaluate = evaluate
        self._ahead = BuiltAhead(batches, self.total)

    def step(self, number: int) -> Figures:
        """One step of every member that has not finished; see `Learner`. Its device figures are `HeadLearner`'s."""
        engine = self.engine
        batch = self._ahead(number)
        seed_dropout(self.seed, number, engine.world.rank)
        sums = engine.gradients(batch)
        active = torch.tensor([step is not None for step in batch.steps], device=engine.device)
        rates = [rate(number) if number < total else None for rate, total in zip(self.rates, self.totals, strict=True)]
        losses, correct, margin = sums.unbind(1)
        norms = engine.step(rates, losses)
        steps = [step for step in batch.steps if step is not None]
        edges = torch.tensor([max(step.totals.edges, 1) if step else 1 for step in batch.steps], device=engine.device)
        finite = losses.isfinite() & norms.isfinite()
        figures = {"loss": losses, "grad_norm": norms, "accuracy": correct / edges, "margin": margin / edges}
        figures["broken"] = (~finite & active).float()
        known = {"epoch": max(step.epoch for step in steps), "learning_rate": max(filter(None, rates), default=0.0)}
        return Figures(
            device={name: figure.where(active, torch.nan) for name, figure in figures.items()},
            line=lambda values: members_line(known, values),
            amounts={
                "tokens_per_second": sum(step.totals.stored_tokens for step in steps),
                "pairs_per_second": sum(step.totals.groups for step in steps),
            },
        )

    def evaluate(self, step: int, final: bool) -> list[Evaluation]:
        """See `Learner`."""
        return self._evaluate()

    def state(self) -> dict[str, Shard]:
        """See `Learner`."""
        return self.engine.state()

    def load_state(self, read: ReadRows) -> None:
        """See `Learner`."""
        self.engine.load_state(read)
