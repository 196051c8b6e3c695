"""Stages that sample a policy: answers to many prompts for MetaRM, and those by which policies are compared."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmfast.config import Config
from rmfast.console import hushed, say
from rmfast.data.table import GroupTable
from rmfast.parallel.world import World
from rmfast.rollout.draft import Request
from rmfast.rollout.policy import draw_numbers, end_ids
from rmfast.tasks.build.folder import run_folder
from rmfast.tasks.build.inputs import Inputs, open_prompts
from rmfast.tasks.build.policy import ModelBuilder
from rmfast.tasks.build.ppo_learner import policy_objective, rollouts_of
from rmfast.tasks.build.ppo_prompts import table_prompts
from rmfast.tasks.iterate.stages import Stage
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import read_log_probs
from rmfast.trainer.ppo.packed import sums
from rmfast.trainer.ppo.records import drawn_records

PART = 2048
"""Prompts of a file: what is drawn between two lines of the console, and gathered at once."""


def draw_samples(stage: Stage, world: World, prompts: int | None) -> None:
    """Sample prompts for MetaRM into `part-*.jsonl` of the stage's folder. All ranks call it.

    Args:
        prompts: how many, in random order; None for all.
    """
    config = stage.config
    with hushed():  # PPO says it
        inputs = open_prompts(config, world)
    builder, ends = builder_of(config, world, inputs)
    engine, folder = builder.frozen("model.path"), run_folder(config.run.dir)
    rollouts = rollouts_of(config, world, inputs, ends, folder)
    rows = np.random.default_rng(config.run.seed).permutation(len(inputs.table))[:prompts]
    texts = [example for _, example in table_prompts(config, config.ppo.prompts, "train", inputs.table)]
    requests = _requests(inputs.table, rows.tolist())
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(rows), PART)):
        name, asked = f"part-{number:04d}", requests[begin : begin + PART]
        drawn = rollouts.draw(name, engine, asked)
        examples = [texts[row] for row in rows[begin : begin + PART].tolist()]
        answers = Answers.of(asked, drawn.drafts, inputs.tokenizer, examples)
        if world.main:
            rollouts.keep(name, drawn.key, drawn_records(inputs.tokenizer, answers))
            say(f"{min(begin + PART, len(rows)):,} of {len(rows):,} prompts have their {rollouts.n} answers")
    world.barrier()  # others read what rank 0 has written


def draw_answers(stage: Stage, world: World) -> None:
    """Sample the held-out prompts into the stage's file, with the log-probabilities that the policy gives. All ranks
    call it."""
    config, file = stage.config, run_folder(stage.config.run.dir) / f"{stage.policy}.jsonl"
    with hushed():
        inputs = open_prompts(config, world)
    builder, ends = builder_of(config, world, inputs)
    engine = builder.frozen("model.path")
    if world.main:
        file.parent.mkdir(parents=True, exist_ok=True)
    rollouts, requests = rollouts_of(config, world, inputs, ends, file.parent), held_out_requests(inputs)
    drawn = rollouts.draw(stage.policy, engine, requests)
    (table,) = inputs.evals.values()
    texts = [example for _, example in table_prompts(config, config.ppo.eval_prompts, "test", table)]
    answers = Answers.of(requests, drawn.drafts, inputs.tokenizer, texts)
    packs = answers.packs(np.arange(len(requests)), engine.data, config.data.tokens_per_pack)
    log_prob, entropy = read_log_probs(config.model.path, engine, packs, answers, policy_objective(config, inputs))
    columns = {"log_prob": sums(log_prob, answers.lengths), "entropy": sums(entropy, answers.lengths) / answers.lengths}
    if world.main:
        beside = {name: values.tolist() for name, values in columns.items()}
        rollouts.keep(stage.policy, drawn.key, _with(drawn_records(inputs.tokenizer, answers), beside))
    world.barrier()


def builder_of(config: Config, world: World, inputs: Inputs) -> tuple[ModelBuilder, frozenset[int]]:
    """What reads models, and the ids that end an answer of the config's policy."""
    ends = end_ids(Path(config.model.path), inputs.hf, inputs.tokenizer)
    return ModelBuilder(config, world, inputs, ends), ends


def held_out_requests(inputs: Inputs) -> list[Request]:
    """The held-out prompts, in their order, with draws that are the same whoever answers."""
    (table,) = inputs.evals.values()
    return _requests(table, range(len(table)))


def _requests(table: GroupTable, rows: Iterable[int]) -> list[Request]:
    return draw_numbers([np.asarray(table.sequences_of(row)[0], np.int32) for row in rows])


def _with(records: Iterator[dict[str, Any]], columns: Mapping[str, list[float]]) -> Iterator[dict[str, Any]]:
    """Records whose samples have figures of the answers beside them."""
    number = 0
    for record in records:
        for sample in record["samples"]:
            sample |= {name: values[number] for name, values in columns.items()}
            number += 1
        yield record
