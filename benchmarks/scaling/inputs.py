"""Runs of the real trainer on packs of random tokens, for what measures them."""

from typing import Any

import numpy as np

from rmfast.config import Config
from rmfast.data.store import TokenStore
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tokenizer import load_tokenizer
from rmfast.models.config import decoder_config
from rmfast.models.hf import read_config
from rmfast.parallel.world import World
from rmfast.tasks.attention import choose_attention
from rmfast.tasks.reward import RewardRun


class Recorder:
    """In place of the run's log: the lines of all steps."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def step(self, values: dict[str, Any], seconds_left: float) -> None:
        self.lines.append(values)


def random_table(lengths: np.ndarray, vocabulary: int, config: Config, seed: int) -> GroupTable:
    """Pairs of random ids with lengths [G, 3] of prompt, chosen and rejected response; the first is the better one."""
    groups = len(lengths)
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, vocabulary, int(lengths.sum()), dtype=np.int32)
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


def stepping_alone(config: Config, *, groups: int, steps: int) -> Config:
    """A config whose run takes that many steps of that many groups, and does nothing else."""
    return config.model_copy(
        update={
            "task": "reward",
            "run": config.run.model_copy(update={"max_steps": steps}),
            "data": config.data.model_copy(update={"pairs_per_step": groups, "train_weights": None}),
            "eval": config.eval.model_copy(update={"suites": (), "every": None, "suites_every": None}),
            "checkpoint": config.checkpoint.model_copy(update={"every": None}),
        }
    )


def open_run(config: Config, world: World, lengths: np.ndarray) -> RewardRun:
    """A run on random pairs of these lengths [G, 3], ready for `train`; all ranks call it.

    Raises:
        UserError: the config cannot be trained.
    """
    hf = read_config(config.model.path)
    decoder = decoder_config(hf, config.model.path)
    table = random_table(lengths, decoder.vocabulary, config, config.run.seed)
    run = RewardRun(config, world, hf, load_tokenizer(config.model.path, None), table, {})
    run.engine.attend_with(choose_attention(config, decoder, table, run.plan, world, None))
    return run
