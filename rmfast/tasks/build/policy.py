"""From a config to the models of PPO."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rmfast.checkpoint.store import MANIFEST
from rmfast.config import Config
from rmfast.data.tokenizer import load_tokenizer, same_ids
from rmfast.errors import UserError
from rmfast.evaluation.scoring.foreign import ForeignModel, is_foreign, load_any
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.evaluation.scoring.score import score_table
from rmfast.evaluation.scoring.shared import by_trunk, load_together
from rmfast.models.config import DTYPES, context_window, decoder_config
from rmfast.models.hf import load_network, read_config
from rmfast.models.lora import adapt
from rmfast.models.names import VALUES
from rmfast.models.network import Network, initialise
from rmfast.models.weights import HEAD
from rmfast.parallel.native import NativeEngine
from rmfast.parallel.residence import ReadOnly
from rmfast.parallel.world import World
from rmfast.tasks.build.adapter import lora_options
from rmfast.tasks.build.choices import attention_impl
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.objective import adamw_options
from rmfast.tasks.build.ppo_prompts import reader_of
from rmfast.tasks.build.trunk import Trunk, same_folder, trained_copy
from rmfast.trainer.ppo.models import Models
from rmfast.trainer.ppo.reading import ById, ByText
from rmfast.trainer.ppo.scorer import Rewards, Scorer, head_names, score_foreign


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

    def models(self) -> Models:
        """All of them."""
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

    def critic_path(self) -> str:
        """The folder that the critic begins as; empty without one."""
        ppo = self.config.ppo
        return {"reward": ppo.reward[0], "policy": self.config.model.path}.get(ppo.critic or "", ppo.critic or "")

    def critic_units(self) -> tuple[float, float] | None:
        """Shift and scale of the critic's values, as its folder says; None for the reward model, which has no values
        yet."""
        ppo = self.config.ppo
        if ppo.critic is None or ppo.critic == "policy":
            return 0.0, 1.0
        path = self.critic_path()
        if (units := getattr(read_config(find_folder(path)), VALUES, None)) is not None:
            return units["shift"], units["scale"]
        return None if path == ppo.reward[0] else (0.0, 1.0)

    def _critic(self, named: str, trunk: Trunk | None, reward: Network | None) -> Network:
        """A reward model of one head, whose scores are taken for values; of a language model with a new head. With
        adapters over the trunk of the model that it begins as, where that is here."""
        path, seed, options = self.critic_path(), self.config.run.seed, lora_options(self.config.model)
        if named == "reward" and not same_ids(load_tokenizer(_exported("ppo.reward", path)), self.inputs.tokenizer):
            raise UserError(
                f"ppo.critic: reward begins as {path}, which has another tokenizer than model.path "
                f"({self.config.model.path}), whose ids a critic reads: set it to policy or a folder of the same base"
            )
        if trunk is not None and options is not None and named == "policy":
            network = trunk.network.beside(heads=1)
            initialise(network, seed, {HEAD})
            adapt(network, options, seed=seed, name="critic")
            return network
        if named == "policy":
            network = self._network("model.path", path, heads=1, new_heads=True)
        elif named == "reward" and trunk is not None and reward is not None:
            network = reward
        else:
            key = "ppo.reward" if named == "reward" else "ppo.critic"
            network = self._network(key, path, new_heads=named != "reward")
        if network.head is None or len(network.head.weight) != 1:
            raise UserError(f"ppo.critic: {path} has several reward heads, and a critic has one; name another folder")
        if options is None:
            return network
        if network is reward:
            return trained_copy(network, options, seed=seed, name="critic")
        adapt(network, options, seed=seed, name="critic")
        return network

    def _rewards(self, trunk: Trunk | None) -> Rewards:
        """The reward models in their order; consecutive ones that share a trunk on disk are scored with one pass."""
        key, left, found = "ppo.reward", list(self.config.ppo.reward), list[Scorer]()
        for group in by_trunk([_exported(key, path) for path in left]):
            some, left = left[: len(group)], left[len(group) :]
            found.append(self._together(key, some) if len(some) > 1 else self._scorer(key, some[0], trunk, len(found)))
        return Rewards(tuple(found))

    def _together(self, key: str, paths: Sequence[str]) -> Scorer:
        """Reward models over one trunk, of one config and tokenizer."""
        folders, budget = [_exported(key, path) for path in paths], self.config.data.tokens_per_pack
        hf = read_config(folders[0])
        window, vocabulary = context_window(hf), decoder_config(hf, str(folders[0])).vocabulary
        read = self._reader(key, folders[0], window, vocabulary)
        if isinstance(read, ById):
            self._check(key, paths[0], window, vocabulary)
        model = load_together(folders, self.world.device, DTYPES[self.config.model.dtype])
        scores = partial(score_table, model.score_packs, world=self.world, budget=budget)
        return Scorer(tuple(paths), read, scores, ReadOnly(model.network))

    def _scorer(self, key: str, path: str, trunk: Trunk | None, number: int = 0) -> Scorer:
        """A folder's reward model, frozen; transformers runs those of families that the decoder does not have. An
        adapter of the policy's model is computed over its trunk.

        Args:
            number: among those of the key.
        """
        folder = _exported(key, path)
        if (model := self._foreign(key, folder)) is not None:
            read = self._reader(key, folder, model.window, model.vocabulary)
            return Scorer(head_names(path, model.heads), read, partial(score_foreign, model, self.world))
        hf = read_config(folder)
        read = self._reader(key, folder, context_window(hf), decoder_config(hf, str(folder)).vocabulary)
        name = f"{key.removeprefix('ppo.')}{number or ''}"
        network = None if trunk is None or isinstance(read, ByText) else trunk.adapted(folder, name)
        network = network or self._network(key, path, by_text=isinstance(read, ByText)).narrow()
        engine, budget = self._engine(key, network), self.config.data.tokens_per_pack
        names = head_names(path, 1 if network.head is None else len(network.head.weight))
        return Scorer(names, read, partial(score_table, engine.score, world=self.world, budget=budget), engine)

    def _foreign(self, key: str, folder: Path) -> ForeignModel | None:
        """A reward model that transformers has to run; None of one that the decoder has."""
        try:
            if not is_foreign(folder):
                return None
            model = load_any(folder, self.world.device, DTYPES[self.config.model.dtype])
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        assert isinstance(model, ForeignModel)
        return model

    def _reader(self, key: str, folder: Path, window: int | None, vocabulary: int) -> ById | ByText:
        return reader_of(key, folder, self.inputs, self.ends, window=window, vocabulary=vocabulary)

    def _network(self, key: str, named: str, **what: Any) -> Network:
        """A model of a folder; the policy's from scratch where the config says so.

        Args:
            what: else that `load_network` takes.
        """
        try:
            return self._read(key, named, **what)
        except UserError as error:
            choices = "; it is reward, policy or a folder" if key == "ppo.critic" else ""
            raise error if str(error).startswith(key) else UserError(f"{key}: {error}{choices}") from None

    def _read(self, key: str, named: str, *, by_text: bool = False, **what: Any) -> Network:
        model, is_policy = self.config.model, named == self.config.model.path
        path = named if is_policy else str(_exported(key, named))
        hf = self.inputs.hf if is_policy else read_config(path)
        decoder = decoder_config(hf, path)
        if not is_policy and not by_text:
            self._check(key, path, context_window(hf), decoder.vocabulary)
        network, _ = load_network(
            path,
            seed=self.config.run.seed,
            from_scratch=model.from_scratch and is_policy,
            dtype=DTYPES[model.dtype],
            recompute=model.recompute,
            impl=model.kernels,
            attention=attention_impl(self.config, self.world.device, decoder),
            **what,
        )
        return network

    def _check(self, key: str, path: str, window: int | None, vocabulary: int) -> None:
        """Refuse a model that cannot read the policy's ids, or not as many of them."""
        tokenizer, longest = self.inputs.tokenizer, self.config.data.max_length
        if not same_ids(load_tokenizer(path), tokenizer) or vocabulary < len(tokenizer):
            raise UserError(
                f"{key}: {path} has another tokenizer than model.path ({self.config.model.path}), and would read other "
                "texts in the policy's ids; give a model that was trained from the same base"
            )
        if window is not None and window < longest:
            raise UserError(
                f"{key}: {path} takes {window:,} tokens, fewer than data.max_length ({longest:,}), and would not see "
                f"the ends of answers: set data.max_length to {window} or less"
            )


def _exported(key: str, named: str) -> Path:
    """A model folder: itself, or a run folder's `model`.

    Raises:
        UserError: an unfinished run, whose model may yet change.
    """
    path = find_folder(named)
    if (path / MANIFEST).is_file():
        raise UserError(f"{key}: {path} is a checkpoint of a run; write its model: rmfast export {path} --out FOLDER")
    return path
