"""Runs of the package for what measures them: its engine, learner and loop, without files."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steps.inputs import open_table, write_rows
from rmfast.config import Config
from rmfast.data.table import GroupTable
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.training import Training
from rmfast.tasks.meta import open_meta
from rmfast.tasks.reward import open_reward
from rmfast.trainer.batch_learner import BatchLearner
from rmfast.trainer.learner import Figures, Learner
from rmfast.trainer.loop import take_steps
from rmfast.trainer.meta_learner import MetaLearner


class Lines:
    """In place of a run's log: keeps the metrics of every step."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def step(self, values: dict[str, Any], seconds_left: float) -> None:
        self.values.append(values)


class Marked:
    """A learner that calls `mark` where a step begins."""

    def __init__(self, learner: Learner, mark: Callable[[], None]) -> None:
        self.learner, self.mark = learner, mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def step(self, number: int) -> Figures:
        self.mark()
        return self.learner.step(number)


class MeasuredRun:
    """A training whose steps are marked and whose metrics are kept in memory."""

    def __init__(self, training: Training) -> None:
        self.training, self.engine, self.learner = training, training.engine, training.learner

    @property
    def pairs(self) -> BatchLearner:
        """What learns from the pairs."""
        learner = self.learner.pairs if isinstance(self.learner, MetaLearner) else self.learner
        assert isinstance(learner, BatchLearner)
        return learner

    def build(self) -> None:
        """Build all steps' packs now, so that the times of steps are without it."""
        loaders = [self.pairs.loader, *([self.learner.prompts] if isinstance(self.learner, MetaLearner) else [])]
        for loader in loaders:
            built = [loader.build(number) for number in range(loader.total)]
            loader.step = built.__getitem__  # type: ignore[assignment]

    def measure(self, mark: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Take all steps; `mark` is called before each and after the last. The metrics of every step."""
        run, lines = self.training.run, Lines()
        run.log = lines  # type: ignore[assignment]
        run.options = replace(run.options, evaluate_every=(), checkpoint_every=None)
        take_steps(run, Marked(self.learner, mark))  # type: ignore[arg-type]
        mark()
        return lines.values


def steps_parser(about: str | None, **counts: int) -> argparse.ArgumentParser:
    """Arguments of a command that measures steps: some counts with their defaults, the shape, lengths, a file."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--lengths", default="hh")
    parser.add_argument("--out", type=Path)
    return parser


def open_run(config: Config, world: World, table: GroupTable) -> MeasuredRun:
    """A run of `task: reward` or `meta` on the table's groups; all ranks call it.

    Raises:
        UserError: the config cannot be trained.
    """
    hf, tokenizer = read_config(config.model.path), load_tokenizer(config.model.path, None)
    put_together = open_meta if config.task == "meta" else open_reward
    return MeasuredRun(put_together(config, world, Inputs(hf=hf, tokenizer=tokenizer, table=table, evals={})))


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
