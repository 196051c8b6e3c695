"""From a config to the models of PPO."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rmfast.config import Config
from rmfast.evaluation.scoring.score import score_table
from rmfast.evaluation.scoring.shared import by_trunk, load_together
from rmfast.models.config import DTYPES, context_window, decoder_config
from rmfast.models.hf import load_network, read_config
from rmfast.models.lora import adapt
from rmfast.models.network import Network, initialise
from rmfast.models.weights import HEAD
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.residence import ReadOnly
from rmfast.parallel.world import World
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.choices import attention_impl
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.objective import adamw_options
from rmfast.tasks.build.ppo_folders import PPOFolders, exported
from rmfast.tasks.build.ppo_megatron import megatron_models
from rmfast.tasks.build.trunk import Trunk, same_folder, trained_copy
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.reading import ById, ByText
from rmfast.trainer.ppo.scorer import Rewards, Scorer, head_names


@dataclass(frozen=True)
class ModelBuilder:
    """Reads the models that a config of PPO names, onto this process's device.

    Args:
        ends: ids that end an answer.

    Every method raises a UserError for a folder that is not what it should be, or has another tokenizer.
    """

    config: Config
    world: World
    inputs: Inputs
    ends: Collection[int]

    @property
    def folders(self) -> PPOFolders:
        """Of the models."""
        return PPOFolders(self.config, self.inputs, self.ends)

    def models(self) -> Models:
        """All of them."""
        if self.config.parallel.engine == "megatron":
            return megatron_models(self.folders, self.world)
        ppo, path = self.config.ppo, self.config.model.path
        policy = self._policy("model.path", path)
        trunk = Trunk(path, policy.narrow()) if self._shared else None
        reference = self._reference(trunk)
        rewards = self._rewards(trunk)
        gold = None if ppo.gold is None else self._scorer("ppo.gold", ppo.gold, trunk)
        first = rewards.scorers[0].held
        reward = first.network if isinstance(first, NativeEngine) else None
        critic = None if ppo.critic is None else self._critic(ppo.critic, trunk, reward)
        if (options := lora_options(self.config.model)) is not None:
            adapt(policy, options, seed=self.config.run.seed)
        return Models(
            policy=self._engine("model.path", policy),
            critic=None if critic is None else self._engine("ppo.critic", critic),
            reference=self._engine("ppo.reference", reference),
            reward=rewards,
            gold=gold,
        )

    def frozen(self, key: str) -> NativeEngine:
        """The policy alone, as a model that is only read and sampled from. key: that names it in errors."""
        return self._engine(key, self._policy(key, self.config.model.path).narrow())

    def scorer(self, key: str, path: str) -> Scorer:
        """A reward model alone. key: that names it in errors."""
        return self._scorer(key, path, None)

    @property
    def _shared(self) -> bool:
        """Whether models are adapters over one trunk. FSDP shards a network with all that is in it."""
        sharded = self.world.size > 1 and self.config.parallel.data == "fsdp"
        return self.config.model.adapter != "none" and not sharded

    def _engine(self, key: str, network: Network) -> NativeEngine:
        options, data = adamw_options(self.config.optim, self.world.device), self.config.parallel.data
        return NativeEngine(network, world=self.world, options=options, data_parallel=data, origin=key)

    def _reference(self, trunk: Trunk | None) -> Network:
        """The policy without its adapter, where they share a trunk and nothing else is named."""
        path = self.config.ppo.reference or self.config.model.path
        if trunk is not None and same_folder(path, trunk.path):
            return trunk.network.beside(lm=True)
        return self._policy("ppo.reference", path).narrow()

    def _policy(self, key: str, path: str) -> Network:
        return self._network(key, path, heads=0, lm=True)

    def _critic(self, named: str, trunk: Trunk | None, reward: Network | None) -> Network:
        """A reward model of one head, whose scores are taken for values; of a language model with a new head. With
        adapters over the trunk of the model that it begins as, where that is here."""
        key, path = self.folders.critic_key(), self.folders.critic_path()
        seed, options = self.config.run.seed, lora_options(self.config.model)
        if trunk is not None and options is not None and named == "policy":
            network = trunk.network.beside(heads=1)
            initialise(network, seed, {HEAD})
            adapt(network, options, seed=seed, name="critic")
            return network
        if named == "policy":
            network = self._network(key, path, heads=1, new_heads=True)
        elif named == "reward" and trunk is not None and reward is not None:
            network = reward
        else:
            network = self._network(key, path, new_heads=named != "reward")
        self.folders.check_critic_heads(0 if network.head is None else len(network.head.weight))
        if options is None:
            return network
        if network is reward:
            return trained_copy(network, options, seed=seed, name="critic")
        adapt(network, options, seed=seed, name="critic")
        return network

    def _rewards(self, trunk: Trunk | None) -> Rewards:
        """The reward models in their order; consecutive ones that share a trunk on disk are scored with one pass."""
        key, left, found = "ppo.reward", list(self.config.ppo.reward), list[Scorer]()
        for group in by_trunk([exported(key, path) for path in left]):
            some, left = left[: len(group)], left[len(group) :]
            found.append(self._together(key, some) if len(some) > 1 else self._scorer(key, some[0], trunk, len(found)))
        return Rewards(tuple(found))

    def _together(self, key: str, paths: Sequence[str]) -> Scorer:
        """Reward models over one trunk, of one config and tokenizer."""
        folders, budget = [exported(key, path) for path in paths], self.config.data.tokens_per_pack
        hf = read_config(folders[0])
        read = self.folders.reader(key, folders[0])
        if isinstance(read, ById):
            vocabulary = decoder_config(hf, str(folders[0])).vocabulary
            self.folders.check_ids(key, paths[0], context_window(hf), vocabulary)
        model = load_together(folders, self.world.device, DTYPES[self.config.model.dtype])
        scores = partial(score_table, model.score_packs, world=self.world, budget=budget)
        return Scorer(tuple(paths), read, scores, ReadOnly(model.network))

    def _scorer(self, key: str, path: str, trunk: Trunk | None, number: int = 0) -> Scorer:
        """A folder's reward model, frozen; transformers runs those of families that the decoder does not have. An
        adapter of the policy's model is computed over its trunk.

        Args:
            number: among those of the key.
        """
        folder = exported(key, path)
        if (foreign := self.folders.foreign(key, path, folder, self.world)) is not None:
            return foreign
        read = self.folders.reader(key, folder)
        name = f"{key.removeprefix('ppo.')}{number or ''}"
        network = None if trunk is None or isinstance(read, ByText) else trunk.adapted(folder, name)
        network = network or self._network(key, path, by_text=isinstance(read, ByText)).narrow()
        engine, budget = self._engine(key, network), self.config.data.tokens_per_pack
        names = head_names(path, 1 if network.head is None else len(network.head.weight))
        return Scorer(names, read, partial(score_table, engine.score, world=self.world, budget=budget), engine)

    def _network(self, key: str, named: str, *, by_text: bool = False, **what: Any) -> Network:
        """A model of a folder; the policy's from scratch where the config says so.

        Args:
            what: else that `load_network` takes.
        """
        model, folders = self.config.model, self.folders
        with folders.named(key):
            path, hf = folders.checked(key, named, by_text=by_text)
            network, _ = load_network(
                path,
                seed=self.config.run.seed,
                from_scratch=model.from_scratch and folders.is_policy(named),
                dtype=DTYPES[model.dtype],
                recompute=model.recompute,
                impl=model.kernels,
                attention=attention_impl(self.config, self.world.device, decoder_config(hf, path)),
                **what,
            )
            return network
