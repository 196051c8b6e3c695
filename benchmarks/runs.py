"""Runs of `task: reward` for what measures them: engine, loader and loop of the package, no evaluation, no files."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rmfast.config import Config
from rmfast.data.loader import Step, StepLoader
from rmfast.data.store import TokenStore
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.parallel.world import World
from rmfast.tasks.attention import choose_attention
from rmfast.tasks.reward import RewardRun
from rmfast.trainer.loop import Progress


class Lines:
    """In place of a run's log: keeps the metrics of every step."""

    def __init__(self) -> None:
        self.values: list[dict[str, Any]] = []

    def step(self, values: dict[str, Any], seconds_left: float) -> None:
        self.values.append(values)


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
    """A run whose steps are marked and whose metrics are kept in memory."""

    attention_engine = ""  # which was chosen

    def measure(self, mark: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        """Train to the end; the metrics of every step."""
        self.mark, lines = mark, Lines()
        self.log = lines  # type: ignore[assignment]
        self.train(Progress())
        return lines.values

    def loader(self, first: int) -> Any:
        return Marked(super().loader(first), getattr(self, "mark", lambda: None))


def open_run(config: Config, world: World, table: GroupTable) -> MeasuredRun:
    """A run on the table's groups with its attention chosen; all ranks call it.

    Raises:
        UserError: the config cannot be trained.
    """
    hf = read_config(config.model.path)
    run = MeasuredRun(config, world, hf, load_tokenizer(config.model.path, None), table, {})
    decoder = decoder_config(hf, config.model.path)
    run.attention_engine = choose_attention(config, decoder, table, run.plan, world, None)
    run.engine.attend_with(run.attention_engine)
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
    return open_run(config, world, random_table(lengths, config))


def random_table(lengths: np.ndarray, config: Config) -> GroupTable:
    """Pairs of random ids of these lengths, by the run's seed; the first response is the better one."""
    vocabulary = decoder_config(read_config(config.model.path), config.model.path).vocabulary
    groups = len(lengths)
    tokens = np.random.default_rng(config.run.seed).integers(0, vocabulary, int(lengths.sum()), dtype=np.int32)
    starts = np.concatenate(([0], np.cumsum(lengths.sum(1))))
    # The responses' first tokens differ, so that the prompt is the common prefix.
    first = starts[:-1] + lengths[:, 0]
    tokens[first + lengths[:, 1]] = (tokens[first] + 1) % vocabulary
    ones = np.ones(groups, np.float32)
    store = TokenStore(
        tokens=tokens,
        token_start=starts.astype(np.int64),
        prefix_length=lengths[:, 0].astype(np.int32),
        response_start=np.arange(0, 2 * groups + 1, 2, dtype=np.int64),
        suffix_length=lengths[:, 1:].reshape(-1).astype(np.int32),
        answer_start=np.repeat(lengths[:, 0], 2).astype(np.int32),
        edge_start=np.arange(groups + 1, dtype=np.int64),
        better=np.zeros(groups, np.int32),
        worse=np.ones(groups, np.int32),
        margin=0 * ones,
        target=ones,
        weight=ones,
        strength_mean=np.nan * ones,
        strength_std=np.nan * ones,
        identical=np.zeros(groups, np.bool_),
        row=np.arange(1, groups + 1),
        prompt=np.arange(groups, dtype=np.uint64),
        meta={"source": "random", "files": [["random", 0]], "bos_id": None, "ends": [], "bad": {}, "key": "random"},
    )
    limits = {"max_length": config.data.max_length, "tokens_per_pack": config.data.tokens_per_pack}
    return build_table([store], over_long="truncate", **limits)[0]
