"""What a language model is evaluated on: held-out demonstrations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rmfast.data.table import GroupTable
from rmfast.evaluation.scoring.perplexity import evaluate_demonstrations
from rmfast.parallel.engine import Engine
from rmfast.trainer.held_out import due, table_prefix
from rmfast.trainer.learner import Evaluation


@dataclass(frozen=True, kw_only=True)
class HeldOutDemonstrations:
    """Held-out sources by name.

    Args:
        every: steps between evaluations; None: before the first step and after the last one.
        budget: tokens of a pack.
    """

    tables: Mapping[str, GroupTable]
    every: int | None
    budget: int

    def evaluate(self, engine: Engine, step: int, final: bool) -> list[Evaluation]:
        """Evaluate what is due after so many steps, on all ranks."""
        if not (final or step == 0 or due(step, self.every)):
            return []
        found = []
        for name, table in self.tables.items():
            metrics = evaluate_demonstrations(engine.read, table, engine.data, budget=self.budget)
            text = evaluation_text(name, step, metrics)
            found.append(Evaluation(name=name, metrics=metrics, prefix=table_prefix(name), text=text))
        return found


def evaluation_text(name: str, step: int, metrics: Mapping[str, Any]) -> str:
    """A line for people."""
    low, high = metrics["perplexity_low"], metrics["perplexity_high"]
    return (
        f"{name} after step {step}: perplexity {metrics['perplexity']:.3f} [{low:.3f}, {high:.3f}], "
        f"loss {metrics['loss']:.4f}, {metrics['mean_token_accuracy']:.1%} of the tokens are the likeliest"
    )
