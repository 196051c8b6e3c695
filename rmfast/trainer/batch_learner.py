"""Learning from groups in packs under one objective: reward models, language models, and what others begin with."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rmfast.data.loader import Step, StepLoader
from rmfast.data.pack import Pack
from rmfast.objectives.base import Objective, Statistics
from rmfast.parallel.engine import Engine, ReadRows, Shard
from rmfast.trainer.dropout import seed_dropout
from rmfast.trainer.flops import Work
from rmfast.trainer.learner import Evaluation, Figures, Line


@dataclass(frozen=True)
class Share:
    """What a step computed of one loader's data; `name` is what errors call it."""

    loader: StepLoader
    step: Step
    name: str = "Rows"

    def __str__(self) -> str:
        return f"{self.name}: {self.loader.labels(self.step)}"


class EngineEvaluation(Protocol):
    """What an engine's weights are evaluated on."""

    def evaluate(self, engine: Engine, step: int, final: bool, /) -> list[Evaluation]:
        """Evaluate what is due after so many steps, on all ranks."""
        ...


class BatchLearner:
    """A step is the objective's gradient over a global batch, and the optimizer's step.

    Args:
        unit: what the log calls the groups of a batch.
        rate: learning rate of a step, 0 for the first one.
        work: what a step costs.
        seed: of dropout.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective[Pack],
        loader: StepLoader,
        held_out: EngineEvaluation,
        *,
        rate: Callable[[int], float],
        work: Work,
        seed: int,
        unit: str = "pairs",
    ) -> None:
        self.engine, self.objective, self.loader, self.held_out = engine, objective, loader, held_out
        self.rate, self.work, self.seed, self.unit = rate, work, seed, unit
        self.total = loader.total
        self.counters = {"num_tokens": 0, "num_computed_tokens": 0}

    def step(self, number: int) -> Figures:
        """See `Learner`."""
        step, statistics = self.gradients(number)
        return self.update([Share(self.loader, step)], statistics)

    def gradients(self, number: int) -> tuple[Step, Statistics]:
        """A step's groups; leaves the gradients of their loss, and gives its statistics."""
        step = self.loader.step(number)
        seed_dropout(self.seed, number, self.loader.rank)
        return step, self.engine.forward_backward(step.packs, self.objective, step.totals)

    def update(self, shares: Sequence[Share], statistics: Statistics) -> Figures:
        """Apply the gradients.

        Args:
            shares: all that the step computed; of the first the gradients are.
        """
        first = shares[0].step
        rate = self.rate(first.number)
        norm = self.engine.optimizer_step(rate)
        totals = [share.step.totals for share in shares]
        stored, sequences = (sum(getattr(t, f"{kind}_tokens") for t in totals) for kind in ("stored", "sequence"))
        padding = sum(share.step.padding for share in shares)
        self.counters["num_tokens"] += sequences
        self.counters["num_computed_tokens"] += stored
        known = {
            "learning_rate": rate,
            **self.counters,
            self.unit: first.totals.groups,
            "padding_share": padding / (padding + stored),
            "prefix_saved_share": 1 - stored / sequences,
        }
        flops = sum(self.work.flops(share.step.totals, lm=share.loader.predicts is not None) for share in shares)

        def line(values: dict[str, float]) -> Line:
            metrics = {"epoch": round(first.epoch, 6)} | self._metrics(values, first)
            metrics |= {name: values[name] for name in statistics.figures} | known
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                return Line(metrics)
            return self._nonfinite(metrics, values, shares)

        return Figures(
            device={**statistics.sums, **statistics.maxima, **statistics.figures, "grad_norm": norm},
            line=line,
            amounts={
                "tokens_per_second": stored,
                f"{self.unit}_per_second": first.totals.groups,
                "tflops": flops / 1e12,
                "mfu": self.work.peak and flops / self.work.peak,
            },
        )

    def _metrics(self, values: Mapping[str, float], step: Step) -> dict[str, float]:
        return self.objective.metrics(values, step.totals) | {"grad_norm": values["grad_norm"]}

    def _nonfinite(self, metrics: dict[str, Any], values: Mapping[str, float], shares: Sequence[Share]) -> Line:
        touched = self._metrics(values, shares[0].step).keys()
        shown = {k: None if k in touched or not _finite(v) else v for k, v in metrics.items()} | {"skipped": True}
        return Line(
            shown,
            f"loss {values['loss']} and gradient norm {values['grad_norm']} are not both finite; the step changed "
            f"nothing. {'; '.join(map(str, shares))}. Lower optim.lr, look at these rows",
        )

    def evaluate(self, step: int, final: bool) -> list[Evaluation]:
        """See `Learner`."""
        return self.held_out.evaluate(self.engine, step, final)

    def state(self) -> dict[str, Shard]:
        """See `Learner`."""
        return self.engine.state() | self._kept()

    def load_state(self, read: ReadRows) -> None:
        """See `Learner`."""
        self.engine.load_state(read)
        for name, shard in self._kept().items():
            shard.tensor.copy_(read(name, 0, len(shard.tensor)))

    def _kept(self) -> dict[str, Shard]:
        """What the objective's batch term keeps from step to step."""
        term, writer = self.objective.batch_term, self.engine.leads
        kept = {} if term is None else term.state()
        return {f"contrast/{name}": Shard(t, 0, tuple(t.shape), writer=writer) for name, t in kept.items()}


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
