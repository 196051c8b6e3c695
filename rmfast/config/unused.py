"""Keys of other sections that a task does not read: set, they would do nothing."""

from rmfast.config.base import Section, refuse
from rmfast.config.sections import DenoiseConfig, ObjectiveConfig, Shared

PPO = {
    "data.train": "is not read by task ppo, which samples answers to ppo.prompts",
    "data.eval": "is not read by task ppo: its held-out prompts are ppo.eval_prompts",
    "data.train_weights": "is for the sources of data.train, which task ppo does not read",
    "data.pairs_per_step": "is not read by task ppo: a step has ppo.prompts_per_step prompts",
    "data.denoise": "is for preferences, and task ppo has none",
    "model.heads": "counts reward heads, and a policy has none",
    "model.top_layers": "is for reward models: task ppo trains every layer of policy and critic",
    "model.lora_dropout": "is not for task ppo: it takes the ratio of new and old probabilities without dropout",
    "eval.suites": "are for reward models: task ppo is evaluated on ppo.eval_prompts",
    "eval.suites_every": "is for reward models: task ppo is evaluated on ppo.eval_prompts",
    "parallel.cuda_graphs": "is not for task ppo, whose packs have many shapes",
}
SFT = {
    "data.denoise": "is for preferences, and task sft has none",
    "model.heads": "counts reward heads, and a language model has none",
    "eval.suites": "are for reward models: task sft is evaluated on data.eval",
    "eval.suites_every": "is for reward models: task sft is evaluated on data.eval",
}


def _of_preferences(task: str) -> dict[str, str]:
    """Sections that are for reward models and their data as a whole."""
    keys = {
        f"objective.{key}": f"is for reward models, and task {task} trains none" for key in ObjectiveConfig.model_fields
    }
    return keys | {
        f"denoise.{key}": f"is for preferences, and task {task} has none" for key in DenoiseConfig.model_fields
    }


UNUSED = {"ppo": PPO | _of_preferences("ppo"), "sft": SFT | _of_preferences("sft")}
"""By task and key, why another value than the default is refused."""


def refuse_unused(config: Shared) -> None:
    """Refuse what the config's task would not do.

    Raises:
        KeyClash: names the first such key.
    """
    for key, text in UNUSED[config.task].items():
        section, name = key.split(".")
        keys: Section = getattr(config, section)
        refuse(getattr(keys, name) != type(keys).model_fields[name].default, key, text)
