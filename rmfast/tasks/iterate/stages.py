"""The stages of an iteration: what each reads and makes, and the config of its run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rmfast.config import Config
from rmfast.config.iterate import StageTask
from rmfast.config.stages import stage_config

FIRST = "first"
"""The policy that the rounds begin with."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Args:
        name: its place in the run folder, a folder or (of answers) a file without its ending.
        title: what it does, for people.
        config: of its run; of samples and answers, that of PPO with the policy that is sampled.
        reads, makes: models, sets of samples and answers, by their places in the run folder.
    """

    name: str
    kind: StageTask | Literal["samples", "answers"]
    title: str
    config: Config
    reads: tuple[str, ...]
    makes: tuple[str, ...]

    @property
    def policy(self) -> str:
        """Of answers: the policy's name, as figures have it."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Plan:
    """What a config's iteration is made of.

    Attributes:
        begin: stages before the first round. rounds: of each round its stages.
    """

    config: Config
    begin: tuple[Stage, ...]
    rounds: tuple[tuple[Stage, ...], ...]

    def place(self, inside: str) -> str:
        """The path of a place in the run folder."""
        return f"{self.config.run.dir}/{inside}" if inside else self.config.model.path


def plan(config: Config) -> Plan:
    """The stages of an iteration, in their order."""
    make = _Stages(config)
    begin = [make.reward(), make.answers(FIRST, make.first)]
    return Plan(
        config,
        (*([make.sft()] if config.iterate.sft else []), *begin),
        tuple(tuple(make.round(number)) for number in range(1, config.iterate.rounds + 1)),
    )


@dataclass(frozen=True)
class _Stages:
    config: Config

    @property
    def first(self) -> str:
        """The first policy's place; empty where it is model.path."""
        return "sft/model" if self.config.iterate.sft else ""

    def path(self, inside: str) -> str:
        return Plan(self.config, (), ()).place(inside)

    def sft(self) -> Stage:
        model = self.config.model
        composed = {"model.path": model.path, "model.from_scratch": model.from_scratch}
        return self._run("sft", "sft", "SFT, the first policy", composed, self.config.run.seed, ())

    def reward(self) -> Stage:
        composed = {"model.path": self.path(self.first)}
        title = "the first reward model, on the preferences alone"
        return self._run("reward", "reward", title, composed, self.config.run.seed, (self.first,))

    def round(self, number: int) -> list[Stage]:
        """A round's stages: samples, MetaRM, PPO, and answers to compare; the control's PPO and answers."""
        before = f"round-{number - 1}/ppo/model" if number > 1 else self.first
        stages = [self._samples(number, before), self._meta(number)]
        stages += self._ppo(number, "ppo", before, f"round-{number}/meta")
        if self.config.iterate.control:
            before = f"round-{number - 1}/control/model" if number > 1 else self.first
            stages += self._ppo(number, "control", before, "reward")
        return stages

    def _samples(self, number: int, policy: str) -> Stage:
        iterate, meta = self.config.iterate, stage_config(self.config, "meta", {"meta.data": ["samples"]}).meta
        name = f"round-{number}/samples"
        changed = {"temperature": iterate.temperature, "samples": meta.k, "eval_prompts": ()}
        config = self._sampling(name, policy, changed, _seed(self.config, number, 1))
        title = f"{meta.k} answers to each prompt, at temperature {iterate.temperature:g}"
        return Stage(name=name, kind="samples", title=title, config=config, reads=(policy,), makes=(name,))

    def _meta(self, number: int) -> Stage:
        goes_on, seed = self.config.iterate.reward == "continue", self.config.run.seed
        before = "reward/model" if number == 1 else f"round-{number - 1}/meta/model"
        start, samples = before if goes_on else self.first, f"round-{number}/samples"
        composed = {"model.path": self.path(start), "meta.data": [self.path(samples)]}
        title = "MetaRM, on the preferences and these answers"
        # A new start has the head and the order of the first reward model: only the samples differ.
        seed = _seed(self.config, number, 2) if goes_on else seed
        return self._run(f"round-{number}/meta", "meta", title, composed, seed, (start, samples))

    def _ppo(self, number: int, folder: str, before: str, reward: str) -> list[Stage]:
        """PPO against a run's reward model, and the answers of the policy that it makes."""
        iterate, name = self.config.iterate, f"round-{number}/{folder}"
        start = self.first if iterate.policy == "restart" else before
        reference = self.first if iterate.reference == "first" else start
        # The same prompts and noise as the control's.
        seed, base = _seed(self.config, number, 0), {"model.path": self.path(start)}
        composed: dict[str, Any] = base | {"ppo.reference": self.path(reference), "ppo.reward": [self.path(reward)]}
        adapted = stage_config(self.config, "ppo", composed).model.adapter != "none" and start == self.first
        scorer = f"{reward}/{'adapter' if adapted and self._adapter_of_first(reward) else 'model'}"
        composed["ppo.reward"] = [self.path(scorer)]
        against = "the first reward model (control)" if folder == "control" else "this round's reward model"
        reads = (start, reference, scorer)
        run = self._run(name, "ppo", f"PPO against {against}", composed, seed, reads)
        policy = f"{'control' if folder == 'control' else 'round'}-{number}"
        return [run, self.answers(policy, f"{name}/model")]

    def _adapter_of_first(self, reward: str) -> bool:
        """Whether a run trains a reward model as an adapter of the first policy, over whose weights it is computed."""
        task: StageTask = "reward" if reward == "reward" else "meta"
        extra = {"meta": {"meta.data": ["samples"]}}.get(task, {})
        restarts = task == "reward" or self.config.iterate.reward == "restart"
        return (
            restarts and stage_config(self.config, task, extra | {"model.from_scratch": False}).model.adapter != "none"
        )

    def answers(self, policy: str, model: str) -> Stage:
        name, count = f"answers/{policy}", self.config.iterate.answers
        # The same draws for every policy, so that differences are the policies'.
        config = self._sampling("answers", model, {"samples": count}, self.config.run.seed)
        title = f"{count} answers to each held-out prompt, to compare policies by"
        return Stage(name=name, kind="answers", title=title, config=config, reads=(model,), makes=(f"{name}.jsonl",))

    def _run(
        self, name: str, task: StageTask, title: str, composed: dict[str, Any], seed: int, reads: Sequence[str]
    ) -> Stage:
        """A run of a task."""
        set_here = {"run.dir": self.path(name), "run.seed": seed, "run.resume": "auto", "model.from_scratch": False}
        config = stage_config(self.config, task, set_here | composed)
        makes = [f"{name}/model", *([f"{name}/adapter"] if config.model.adapter != "none" else [])]
        read = tuple(dict.fromkeys(place for place in reads if place))
        return Stage(name=name, kind=task, title=title, config=config, reads=read, makes=tuple(makes))

    def _sampling(self, name: str, policy: str, ppo: dict[str, Any], seed: int) -> Config:
        """The config of PPO by which a policy is sampled, whole and frozen."""
        composed = {"model.path": self.path(policy), "model.from_scratch": False, "ppo.reward": [self.path(policy)]}
        config = stage_config(self.config, "ppo", composed)
        copies = {
            "run": config.run.model_copy(update={"dir": self.path(name), "seed": seed}),
            "model": config.model.model_copy(update={"adapter": "none"}),
            "ppo": config.ppo.model_copy(update=ppo),
        }
        return config.model_copy(update=copies)


def _seed(config: Config, number: int, stream: int) -> int:
    """The seed of a round: of its PPO (stream 0), samples (1), MetaRM where that goes on (2)."""
    return int(np.random.SeedSequence((config.run.seed, number, stream)).generate_state(1)[0]) >> 1
