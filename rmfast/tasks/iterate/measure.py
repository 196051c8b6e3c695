"""What the policies so far answered, scored by every model so far: what the report over rounds is made of.

A model's scores are kept in RUN/answers/MODEL.npz, with what tells the model and the answers apart: nothing is scored
twice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rmfast.config import Config
from rmfast.console import hushed, say
from rmfast.data.files import written_whole
from rmfast.data.pack import Pack
from rmfast.data.table import GroupTable
from rmfast.evaluation.metrics import Floats
from rmfast.evaluation.rounds.diversity import mean_cosine
from rmfast.evaluation.rounds.figures import FIRST_MODEL, GOLD, Answered, Measured
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.evaluation.scoring.score import score_table
from rmfast.models.network import Reads
from rmfast.outputs.arrays import read_arrays
from rmfast.outputs.checksums import unsealed_line
from rmfast.outputs.kinds import json_object
from rmfast.parallel.gather import gather_bytes
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.world import World
from rmfast.tasks.build.folder import run_folder
from rmfast.tasks.build.inputs import Inputs, open_prompts
from rmfast.tasks.build.policy import ModelBuilder
from rmfast.tasks.build.ppo_learner import policy_objective
from rmfast.tasks.build.ppo_prompts import held_out_texts
from rmfast.tasks.iterate.record import Record
from rmfast.tasks.iterate.sampling import builder_of, held_out_requests
from rmfast.tasks.iterate.stages import FIRST, Plan, Stage
from rmfast.trainer.ppo.answers import Answers
from rmfast.trainer.ppo.experience import read_log_probs
from rmfast.trainer.ppo.packed import sums
from rmfast.trainer.ppo.rollouts import draft_of

Scores = dict[str, Floats]
"""Of some policies' answers, by the policies' names."""
REFERENCE, COSINE = "reference", "cosine"


@dataclass(frozen=True, eq=False)
class Measures:
    """The policies of stages that are done.

    Args:
        record: on rank 0, what was made.
    """

    plan: Plan
    world: World
    record: Record | None
    stages: Sequence[Stage]
    kept: dict[str, Scores] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """By which answers were drawn, with the first policy as the model."""
        return next(stage.config for stage in self.stages if stage.policy == FIRST)

    @property
    def folder(self) -> Path:
        return run_folder(self.plan.config.run.dir) / "answers"

    @cached_property
    def inputs(self) -> Inputs:
        with hushed():
            return open_prompts(self.config, self.world)

    @cached_property
    def builder(self) -> ModelBuilder:
        return builder_of(self.config, self.world, self.inputs)[0]

    @cached_property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The answers' records of each policy."""
        names = {stage.policy: self.folder / f"{stage.policy}.jsonl" for stage in self.stages}
        return {name: [unsealed_line(line) for line in file.read_bytes().splitlines()] for name, file in names.items()}

    @cached_property
    def answers(self) -> dict[str, Answers]:
        requests = held_out_requests(self.inputs)
        drafts = {
            name: [[draft_of(sample) for sample in row["samples"]] for row in rows] for name, rows in self.rows.items()
        }
        return {name: Answers.of(requests, of, self.inputs.tokenizer) for name, of in drafts.items()}

    def models(self) -> dict[str, str]:
        """The reward models so far by name, as places; gold's is a path."""
        last = max(_round(stage.policy) for stage in self.stages)
        found = {FIRST_MODEL: "reward/model"}
        found |= {f"meta-{number}": f"round-{number}/meta/model" for number in range(1, last + 1)}
        return found

    def take(self) -> None:
        """Score what is not scored yet. All ranks call it."""
        self._scores(REFERENCE, self._first_place, self._log_probs)
        for name, place in self.models().items():
            self._scores(name, place, partial(self._rewards, "ppo.reward", self.plan.place(place)))
        if (gold := self.config.ppo.gold) is not None:
            self._scores(GOLD, gold, partial(self._rewards, "ppo.gold", gold))

    @property
    def _first_place(self) -> str:
        return "sft/model" if self.plan.config.iterate.sft else ""

    def _scores(self, name: str, place: str, make: Callable[[Sequence[str]], Scores]) -> None:
        """A model's scores of all policies' answers, from its file where they are there."""
        file, keys = self.folder / f"{name}.npz", self._keys(name, place)
        found = _read(file, keys) if self.world.main else {}
        names = json.loads(gather_bytes(self.world, json.dumps(sorted(keys.keys() - found.keys())).encode())[0])
        if names:
            if self.world.main:
                say(f"scores by {name}: answers of {', '.join(names)}")
            found |= make(names)
            if self.world.main:
                _write(file, keys, found)
        self.kept[name] = found

    def _keys(self, name: str, place: str) -> dict[str, str]:
        """What tells a model with each policy's answers from others, on rank 0."""
        if self.record is None:
            return {}
        outside = _outside(place or self.config.model.path) if name == GOLD or not place else ""
        of_model = outside or self.record.made(place)
        files = {stage.policy: self.record.made(stage.makes[0]) for stage in self.stages}
        return {policy: f"{of_model} {digest}" for policy, digest in files.items()}

    def _log_probs(self, names: Sequence[str]) -> Scores:
        """Log-probabilities of answers under the first policy."""
        engine, objective = self.builder.frozen("model.path"), policy_objective(self.config, self.inputs)
        found = {}
        for name in names:
            answers = self.answers[name]
            rows, budget = np.arange(len(answers.requests)), self.config.data.tokens_per_pack
            packs = answers.packs(rows, engine.data, budget)
            log_prob, _ = read_log_probs(self.config.model.path, engine, packs, answers, objective)
            found[name] = _by_prompt(sums(log_prob, answers.lengths).numpy(), answers)
        return found

    def _rewards(self, key: str, path: str, names: Sequence[str]) -> Scores:
        """Rewards of answers; of the first reward model also how alike its features of them are."""
        scorer = self.builder.scorer(key, path)
        texts, found = held_out_texts(self.config, self.inputs, scorer), {}
        for name in names:
            one = self.answers[name]
            answers = Answers(one.requests, one.drafts, one.table, texts)
            found[name] = _by_prompt(scorer.score(answers).mean(1).numpy(), answers)
            if path == self.plan.place("reward/model") and isinstance(scorer.held, NativeEngine):
                found[f"{COSINE}:{name}"] = self._cosines(scorer.held, scorer.read(answers), answers)
        return found

    def _cosines(self, engine: NativeEngine, table: GroupTable, answers: Answers) -> Floats:
        """Mean cosine [P, n] of each answer's features with those of the other prompts' answers of the same draw."""

        def features(packs: Sequence[Pack]) -> list[Tensor]:
            read = engine.read(packs, lambda pack: Reads(scores=pack.scored, features=True))
            return [outputs.features for outputs in read if outputs.features is not None]

        values = score_table(features, table, self.world, budget=self.config.data.tokens_per_pack)
        by_draw = values.reshape(len(answers.requests), -1, values.shape[1]).swapaxes(0, 1)
        return np.stack([mean_cosine(of_draw) for of_draw in by_draw], axis=1)

    def measured(self, votes: Mapping[tuple[str, str], Floats]) -> Measured:
        """All that is known, on rank 0. votes: of the LLM judge."""
        rewards = {
            name: {policy: scores[policy] for policy in self.rows} for name, scores in self.kept.items()
            if name != REFERENCE
        }  # fmt: skip
        return Measured({name: self._answered(name) for name in self.rows}, rewards, votes, self._accuracy())

    def _answered(self, name: str) -> Answered:
        rows = self.rows[name]

        def column(read: Callable[[dict[str, Any]], float]) -> Floats:
            return np.array([[read(sample) for sample in row["samples"]] for row in rows], dtype=np.float64)

        return Answered(
            round=_round(name),
            control=name.startswith("control-"),
            texts=[row["responses"] for row in rows],
            entropy=column(lambda sample: sample["entropy"]),
            length=column(lambda sample: len(sample["ids"])),
            cut=column(lambda sample: sample["stop_reason"] == "length"),
            log_ratio=column(lambda sample: sample["log_prob"]) - self.kept[REFERENCE][name],
            cosine=self.kept[FIRST_MODEL][f"{COSINE}:{name}"],
        )

    def _accuracy(self) -> dict[str, dict[str, Any]]:
        """Of each reward model on the first held-out pairs, as its run's summary has it."""
        found = {}
        for name, place in self.models().items():
            file = run_folder(self.plan.config.run.dir) / Path(place).parent / "summary.json"
            values = json_object(file.read_bytes()) if file.is_file() else {}
            prefix = next((key.removesuffix("accuracy_low") for key in values if key.endswith("accuracy_low")), None)
            if prefix is not None:
                names = ("accuracy", "accuracy_low", "accuracy_high")
                found[name] = {key: values[f"{prefix}{key}"] for key in names}
        return found


def _round(policy: str) -> int:
    return 0 if policy == FIRST else int(policy.rpartition("-")[2])


def _by_prompt(values: np.ndarray, answers: Answers) -> Floats:
    """[B] as [P, n]."""
    return np.asarray(values, np.float64).reshape(len(answers.requests), -1)


def _outside(path: str) -> str:
    """What tells a model that no stage made from another: its files' names and sizes."""
    folder = find_folder(path)
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    return f"{path} " + " ".join(f"{file.name} {file.stat().st_size}" for file in files if file.is_file())


def _read(file: Path, keys: Mapping[str, str]) -> Scores:
    """The scores of a file that are of the same model and answers; none of a damaged one."""
    if not file.is_file():
        return {}
    try:
        arrays = read_arrays(file)
        same = {name for name, key in keys.items() if str(arrays.get(f"key:{name}", "")) == key and name in arrays}
    except (OSError, ValueError, KeyError):
        say(f"{file}: damaged; made again")
        return {}
    return {name: array for name, array in arrays.items() if name.removeprefix(f"{COSINE}:") in same}


def _write(file: Path, keys: Mapping[str, str], scores: Scores) -> None:
    with written_whole(file) as temporary, temporary.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **scores, **{f"key:{n}": np.array(k) for n, k in keys.items()})
