"""The model folders that a config of PPO names, and what is refused of them before their weights are read."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedConfig

from rmfast.checkpoint.store import MANIFEST
from rmfast.config import Config
from rmfast.data.tokenizer import load_tokenizer, same_ids
from rmfast.errors import UserError
from rmfast.evaluation.scoring.foreign import ForeignModel, is_foreign, load_any
from rmfast.evaluation.scoring.reward_model import find_folder
from rmfast.models.config import DTYPES, context_window, decoder_config
from rmfast.models.hf import read_config
from rmfast.models.names import VALUES
from rmfast.parallel.world import World
from rmfast.tasks.build.inputs import Inputs
from rmfast.tasks.build.ppo_prompts import reader_of
from rmfast.trainer.ppo.reading import ById, ByText
from rmfast.trainer.ppo.scorer import Scorer, head_names, score_foreign


@dataclass(frozen=True)
class PPOFolders:
    """The folders of a config.

    Args:
        ends: ids that end an answer.

    Every method raises a UserError for a folder that is not what it should be, or has another tokenizer.
    """

    config: Config
    inputs: Inputs
    ends: Collection[int]

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

    def critic_key(self) -> str:
        """The key that names the critic's folder; a reward model as critic must have the policy's tokenizer."""
        named, path = self.config.ppo.critic, self.critic_path()
        if named == "reward" and not same_ids(load_tokenizer(exported("ppo.reward", path)), self.inputs.tokenizer):
            raise UserError(
                f"ppo.critic: reward begins as {path}, which has another tokenizer than model.path "
                f"({self.config.model.path}), whose ids a critic reads: set it to policy or a folder of the same base"
            )
        return {"policy": "model.path", "reward": "ppo.reward"}.get(named or "", "ppo.critic")

    def check_critic_heads(self, heads: int) -> None:
        """Refuse a critic of several reward heads."""
        if heads != 1:
            raise UserError(
                f"ppo.critic: {self.critic_path()} has several reward heads, and a critic has one; name another folder"
            )

    @contextlib.contextmanager
    def named(self, key: str) -> Iterator[None]:
        """Within it errors begin with the key."""
        try:
            yield
        except UserError as error:
            choices = "; it is reward, policy or a folder" if key == "ppo.critic" else ""
            raise error if str(error).startswith(key) else UserError(f"{key}: {error}{choices}") from None

    def is_policy(self, named: str) -> bool:
        """Whether a folder is the one that the policy begins as."""
        return named == self.config.model.path

    def checked(self, key: str, named: str, *, by_text: bool = False) -> tuple[str, PreTrainedConfig]:
        """A model's folder and its config.

        Args:
            by_text: it has another tokenizer, by which it reads texts.
        """
        if self.is_policy(named):
            return named, self.inputs.hf
        path = str(exported(key, named))
        hf = read_config(path)
        decoder = decoder_config(hf, path)
        if not by_text:
            self.check_ids(key, path, context_window(hf), decoder.vocabulary)
        return path, hf

    def check_ids(self, key: str, path: str, window: int | None, vocabulary: int) -> None:
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

    def reader(self, key: str, folder: Path) -> ById | ByText:
        """How a reward model of the decoder's families reads answers."""
        hf = read_config(folder)
        return self._reader(key, folder, context_window(hf), decoder_config(hf, str(folder)).vocabulary)

    def _reader(self, key: str, folder: Path, window: int | None, vocabulary: int) -> ById | ByText:
        return reader_of(key, folder, self.inputs, self.ends, window=window, vocabulary=vocabulary)

    def foreign(self, key: str, path: str, folder: Path, world: World) -> Scorer | None:
        """A reward model that transformers has to run, whole on each process; None of one that the decoder has."""
        try:
            if not is_foreign(folder):
                return None
            model = load_any(folder, world.device, DTYPES[self.config.model.dtype])
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        assert isinstance(model, ForeignModel)
        read = self._reader(key, folder, model.window, model.vocabulary)
        return Scorer(head_names(path, model.heads), read, partial(score_foreign, model, world))


def exported(key: str, named: str) -> Path:
    """A model folder: itself, or a run folder's `model`.

    Raises:
        UserError: an unfinished run, whose model may yet change.
    """
    path = find_folder(named)
    if (path / MANIFEST).is_file():
        raise UserError(f"{key}: {path} is a checkpoint of a run; write its model: rmfast export {path} --out FOLDER")
    return path
