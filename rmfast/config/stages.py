"""The configs of task iterate's stages: what it says of one stage alone, and what it says of all in other keys."""

from collections.abc import Mapping
from typing import Any, get_args

from rmfast.config.base import refuse
from rmfast.config.config import Config
from rmfast.config.iterate import StageTask
from rmfast.config.sections import Shared
from rmfast.config.unused import UNUSED

SECTIONS: dict[StageTask, tuple[str, ...]] = {
    "sft": ("sft",), "reward": (), "meta": ("meta",), "ppo": ("ppo", "rollout", "sft"),
}  # fmt: skip
"""Sections that a stage's task reads beside those that every task does."""
COMPOSED = ("task", "run.dir", "run.seed", "run.resume", "model.path", "model.from_scratch", "ppo.reward", "meta.data",
            "ppo.reference")  # fmt: skip
"""Keys that task iterate sets for each stage."""
WHOLE = ("run.threads", "parallel.timeout_minutes")
"""Keys of the processes, which all stages share."""
STAGE_KEY = "iterate.stages"

Values = dict[str, Any]


def stage_tasks(config: Config) -> tuple[StageTask, ...]:
    """The tasks whose runs an iteration is made of, in their order."""
    return tuple(task for task in get_args(StageTask) if task != "sft" or config.iterate.sft)


def stage_config(config: Config, task: StageTask, composed: Mapping[str, Any]) -> Config:
    """The config of a stage's run: each key that its task reads, the stage's before the whole config's.

    Args:
        composed: values of `COMPOSED` keys; `task` is set anyway.

    Raises:
        ValidationError: of pydantic, for what the task refuses.
        KeyClash: a key is set for the stage that is none's to set.
    """
    given = flat(config.model_dump(mode="json", exclude_unset=True))
    sections, unused = {*Shared.model_fields, *SECTIONS[task]}, UNUSED.get(task, {})
    # Not in silence how the work is shared: what does not run a task is refused by it.
    base = {
        key: value
        for key, value in given.items()
        if key.split(".")[0] in sections and (key not in unused or key.startswith("parallel."))
    }
    of_stage = {key: value for key, value in flat(config.iterate.stages.get(task, {})).items() if value != {}}
    for key in of_stage:
        name = f"{STAGE_KEY}.{task}.{key}"
        refuse("." not in key, name, f"names no key: it is SECTION.KEY, as in {STAGE_KEY}.{task}.optim.lr", name)
        refuse(key in COMPOSED, name, f"is set by task iterate: leave it out ({_instead(key)})", name)
        refuse(key in WHOLE, name, f"is of the processes, which all stages share: set {key}", name)
    return Config.model_validate(nested({**base, **of_stage, **composed, "task": task}))


def checked_stages(config: Config) -> dict[StageTask, Config]:
    """A config of each stage's task, with the first model in place of those that stages will make.

    Raises:
        As `stage_config`.
    """
    return {task: stage_config(config, task, placeholders(config, task)) for task in stage_tasks(config)}


def placeholders(config: Config, task: StageTask) -> Values:
    """Values of `COMPOSED` keys before any stage has made a model."""
    model = config.model.path
    found: Values = {"model.path": model, "model.from_scratch": task == stage_tasks(config)[0] and config.iterate.sft}
    found["model.from_scratch"] = found["model.from_scratch"] and config.model.from_scratch
    return found | {"ppo": {"ppo.reward": [model]}, "meta": {"meta.data": [model]}}.get(task, {})


def _instead(key: str) -> str:
    """What sets a composed key."""
    hints = {
        "run.seed": "run.seed sets all seeds",
        "ppo.reference": "iterate.reference sets it",
        "ppo.reward": "each round's MetaRM makes it",
        "meta.data": "each round's samples are it",
    }
    return hints.get(key, f"{key} follows from the stages before")


def flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested sections as dotted keys; the last level is a key's value, whatever it is."""
    out: Values = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        is_section = isinstance(value, Mapping) and value and key not in ("data.columns", STAGE_KEY)
        out |= flat(value, f"{key}.") if is_section else {key: value}
    return out


def nested(values: Mapping[str, Any]) -> Values:
    """Dotted keys as sections."""
    root: Values = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        node = root
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return root
