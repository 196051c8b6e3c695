"""From a config to the models of PPO over the megatron engine's ranks: all divided alike, computed in turn."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rmfast.evaluation.scoring.score import score_table
from rmfast.models.weights import HEAD
from rmfast.parallel.world import World
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.megatron import open_megatron
from rmfast.tasks.build.ppo_folders import PPOFolders, exported
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.reading import ByText
from rmfast.trainer.ppo.scorer import Rewards, Scorer, head_names

if TYPE_CHECKING:
    from rmfast.parallel.megatron.engine import MegatronEngine

Open = Callable[..., "MegatronEngine"]


def megatron_models(folders: PPOFolders, world: World) -> Models:
    """All models that the config names; all ranks call it. No rank holds more of one than its part, but of reward
    models that transformers runs."""
    config, ppo = folders.config, folders.config.ppo
    adapter, path = lora_options(config.model), config.model.path
    open_ = partial(_open, folders, world)
    return Models(
        policy=open_("model.path", path, heads=0, lm=True, adapter=adapter),
        critic=None if ppo.critic is None else _critic(folders, open_),
        reference=open_("ppo.reference", ppo.reference or path, heads=0, lm=True, frozen=True),
        reward=Rewards(tuple(_scorer(folders, world, open_, "ppo.reward", one) for one in ppo.reward)),
        gold=None if ppo.gold is None else _scorer(folders, world, open_, "ppo.gold", ppo.gold),
    )


def _open(
    folders: PPOFolders, world: World, key: str, named: str, *, by_text: bool = False, **what: object
) -> "MegatronEngine":
    """A model of a folder; the policy's from scratch where the config says so. `what`: else that `open_megatron`
    takes."""
    with folders.named(key):
        path, hf = folders.checked(key, named, by_text=by_text)
        scratch = folders.config.model.from_scratch and folders.is_policy(named)
        return open_megatron(folders.config, world, path, hf, from_scratch=scratch, origin=key, **what)  # type: ignore[arg-type]


def _critic(folders: PPOFolders, open_: Open) -> "MegatronEngine":
    """A reward model of one head, whose scores are taken for values; of a language model with a new head."""
    named, key, path = folders.config.ppo.critic, folders.critic_key(), folders.critic_path()
    heads, adapter = 1 if named == "policy" else None, lora_options(folders.config.model)
    critic = open_(
        key, path, heads=heads, lm=False, new_heads=named != "reward", adapter=adapter, adapter_name="critic"
    )
    folders.check_critic_heads(critic.held.shapes[HEAD][0])
    return critic


def _scorer(folders: PPOFolders, world: World, open_: Open, key: str, path: str) -> Scorer:
    """A folder's reward model, frozen."""
    folder = exported(key, path)
    if (foreign := folders.foreign(key, path, folder, world)) is not None:
        return foreign
    read = folders.reader(key, folder)
    engine = open_(key, path, heads=None, lm=False, frozen=True, by_text=isinstance(read, ByText))
    scores = partial(score_table, engine.score, world=engine.data, budget=folders.config.data.tokens_per_pack)
    return Scorer(head_names(path, engine.held.shapes[HEAD][0]), read, scores, engine)
