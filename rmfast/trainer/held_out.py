"""What a run is evaluated on: held-out tables and suites, scored by its engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rmfast.data.files import written_whole
from rmfast.data.table import GroupTable
from rmfast.evaluation.scoring.score import evaluate_table
from rmfast.parallel.engine import Engine
from rmfast.trainer.learner import Evaluation
from rmfast.trainer.suites import SuiteRun, suite_line, suite_metrics, write_result


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out sources by name and suites.

    Args:
        every, suites_every: steps between evaluations of either; None: tables before the first step and after the last
            one, suites after the last one alone.
        budget: tokens of a pack. center: see `RewardObjective`.
        model: of which results of suites tell.
    """

    tables: Mapping[str, GroupTable]
    suites: Sequence[SuiteRun] = ()
    every: int | None = None
    suites_every: int | None = None
    budget: int
    center: float = 0.0
    model: Path = Path()

    def evaluate(self, engine: Engine, step: int, final: bool) -> list[Evaluation]:
        """Evaluate what is due after so many steps, on all ranks."""
        found = []
        if final or due(step, self.suites_every):
            found += [self._suite(suite, engine, step) for suite in self.suites]
        if final or step == 0 or due(step, self.every):
            found += [self._table(name, table, engine, final) for name, table in self.tables.items()]
        return found

    def _suite(self, suite: SuiteRun, engine: Engine, step: int) -> Evaluation:
        about = {"name": self.model.name, "kind": "reward model", "model": str(self.model), "step": step}
        result = suite.run(engine.score, engine.data, self.budget, about)
        return Evaluation(
            name=suite.name,
            metrics=suite_metrics(result),
            prefix=f"eval_{suite.name}_",
            text=suite_line(suite.name, step, result),
            keep=lambda folder: write_result(folder / f"{suite.name}-{step}.json", result),
        )

    def _table(self, name: str, table: GroupTable, engine: Engine, final: bool) -> Evaluation:
        metrics, arrays = evaluate_table(engine.score, table, engine.data, budget=self.budget, center=self.center)
        return Evaluation(
            name=name,
            metrics=metrics,
            prefix=table_prefix(name),
            keep=partial(keep_scores, name, arrays) if final else None,
        )


def keep_scores(name: str, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write what plots of a held-out source need."""
    with written_whole(folder / f"{name}-final.npz") as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def table_prefix(name: str) -> str:
    """Of the metrics of a held-out source."""
    return "eval_" if name == "eval" else f"eval_{name}_"


def due(step: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is due."""
    return every is not None and step % every == 0
