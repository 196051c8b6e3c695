"""Runs of the package for what measures them: its engine, loader and loop, without files."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steps.inputs import open_table, write_rows
from rmfast.config import Config
from rmfast.data.loader import Step, StepLoader
from rmfast.data.table import GroupTable
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.parallel.world import World
from rmfast.tasks.attention import choose_attention
from rmfast.tasks.meta import MetaRun
from rmfast.tasks.reward import RewardRun
from rmfast.trainer.loop import Progress


class Lines:
    """In place of a run's log: keeps the metrics of every step."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def step(self, values: dict[str, Any], seconds_left: float) -> None:
        self.values.append(values)

    def evaluation(self, *_: object) -> None:
        """`MeasuredRun.evaluate` keeps these."""


class Marked:
    """A loader that calls `mark` where a step begins, and once after the last."""

    def __init__(self, loader: StepLoader, mark: Callable[[], None]) -> None:
        self.loader, self.mark = loader, mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Step]:
        for step in self.loader:
            self.mark()
            yield step
        self.mark()


class MeasuredRun(RewardRun):
    """A run whose steps are marked and whose metrics are kept in memory.

    Attributes:
        evaluations: what `evaluate` found, by step.
    """

    def measure(self, mark: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Train to the end; the metrics of every step."""
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.mark, lines = mark, Lines()
        self.log = lines  # type: ignore[assignment]
        self.train(Progress())
        return lines.values

    def loader(self, first: int) -> Any:
        return Marked(super().loader(first), getattr(self, "mark", lambda: None))

    def evaluate(self, step: int, final: bool = False) -> dict[str, Any]:
        self.evaluations[step] = super().evaluate(step, final)
        return self.evaluations[step]


class MeasuredMetaRun(MeasuredRun, MetaRun):
    """The same with MetaRM's ascent."""


def open_run(
    config: Config, world: World, table: GroupTable, evals: dict[str, GroupTable] | None = None
) -> MeasuredRun:
    """A run of `task: reward` or `meta` on the table's groups with its attention chosen; all ranks call it.

    Raises:
        UserError: the config cannot be trained.
    """
    hf = read_config(config.model.path)
    kind = MeasuredMetaRun if config.task == "meta" else MeasuredRun
    run = kind(config, world, hf, load_tokenizer(config.model.path, None), table, evals or {})
    run.attention = choose_attention(config, run.decoder_config, table, run.plan, world, None)
    run.engine.attend_with(run.attention)
    return run


def open_random(config: Config, world: World, lengths: np.ndarray, groups: int) -> MeasuredRun:
    """A run over random pairs with lengths [steps x groups, 3] of prompt, chosen and rejected response, in steps of
    `groups` of them, that does nothing else than step; all ranks call it.

    Raises:
        UserError: the config cannot be trained.
    """
    changes = {
        "run": {"max_steps": len(lengths) // groups},
        "data": {"pairs_per_step": groups, "train_weights": None},
        "eval": {"suites": (), "every": None, "suites_every": None},
        "checkpoint": {"every": None},
    }
    sections = {name: getattr(config, name).model_copy(update=keys) for name, keys in changes.items()}
    config = config.model_copy(update={"task": "reward"} | sections)
    path, data = config.model.path, config.data
    limits = {"max_length": data.max_length, "tokens_per_pack": data.tokens_per_pack}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, lengths, decoder_config(read_config(path), path).vocabulary, config.run.seed)
        return open_run(config, world, open_table(rows, Path(path), limits)[1])
