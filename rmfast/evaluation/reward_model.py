"""A trained reward model as a library: load it, score responses."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.checkpoint.store import MANIFEST, list_checkpoints, read_weights
from rmfast.data.example import BadRow, Example
from rmfast.data.pack import Pack
from rmfast.data.rows import parse_row
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tokenise import encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.score import Progress, score_table
from rmfast.models.config import decoder_config
from rmfast.models.hf import build_network, load_network, read_config
from rmfast.models.reward import RewardNetwork
from rmfast.models.weights import HEAD, TRAINING_ONLY


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    chat_template: str | None = None,
    tokens_per_pack: int = 16384,
    progress: Progress | None = None,
) -> "RewardModel":
    """Load a reward model.

    Args:
        path: a Hugging Face folder of a `*ForSequenceClassification` model of a supported family, a run folder (its
            `model/`), or a checkpoint folder of a run.
        device: where it scores. dtype: of weights and activations; scores are fp32.
        chat_template: jinja file or text, in place of the tokenizer's own.
        tokens_per_pack: token budget of a forward pass; it changes scores by rounding only.
        progress: told how many prompts are scored, of how many.

    Raises:
        UserError: nothing there, another architecture, no reward head.
    """
    path = model_folder(path)
    if (path / MANIFEST).is_file():
        network, hf = _from_checkpoint(path, dtype)
    else:
        network, hf = load_network(path, dtype=dtype, weights_dtype=dtype)
    tokenizer = load_tokenizer(path, chat_template)
    return RewardModel(network.to(device), hf, tokenizer, tokens_per_pack=tokens_per_pack, progress=progress)


def model_folder(path: str | Path) -> Path:
    """The folder that a path means: itself, a run folder's `model`, or the newest checkpoint of an unfinished run.

    Raises:
        UserError: no model of a supported family is there.
    """
    path = find_folder(path)
    decoder_config(read_config(path), str(path))
    return path


def find_folder(path: str | Path) -> Path:
    """As `model_folder`, of a model of any family, or of none."""
    path = Path(path)
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        return path / "model"
    if not (path / "config.json").is_file() and (checkpoints := list_checkpoints(path / "checkpoints")):
        return checkpoints[-1]
    if (path / "ensemble.json").is_file() and not (path / "model").is_dir():
        raise UserError(f"{path}: an ensemble of whole models; name its members: {path}/members/*/model")
    return path


def _from_checkpoint(path: Path, dtype: torch.dtype) -> tuple[RewardNetwork, PreTrainedConfig]:
    hf = read_config(path)
    state = {name: tensor.to(dtype) for name, tensor in read_weights(path).items() if name not in TRAINING_ONLY}
    network = build_network(hf, where=str(path), heads=state[HEAD].shape[0], dtype=dtype)
    network.load_state_dict(state, assign=True)
    return network, hf


class RewardModel:
    """Scores responses to prompts. Make one with `rmfast.load`.

    Attributes:
        network: the model. hf: its Hugging Face config. tokenizer: its tokenizer.
    """

    def __init__(
        self,
        network: RewardNetwork,
        hf: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens_per_pack: int = 16384,
        progress: Progress | None = None,
    ) -> None:
        self.network, self.hf, self.tokenizer = network.eval().requires_grad_(False), hf, tokenizer
        self.tokens_per_pack, self.progress = tokens_per_pack, progress

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """Reward of every response; with several heads their mean.

        The same to rounding for any batch, order or company. Strings: prompt + response are tokenised as one text and
        the eos is appended where it is missing. Messages: the chat template over prompt and answer, nothing appended.
        The last token is scored.

        Args:
            rows: `{"prompt": str | messages, "responses": [str, ...]}`; TRL's preference columns work as well, in
                the order chosen, rejected.

        Returns:
            For each row a list with one number a response.

        Raises:
            UserError: a row that cannot be scored, by its number.
        """
        if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
            raise UserError(f"score takes a list of rows, not {type(rows).__name__}")
        rows = list(rows)
        examples = {i: _parse(row, i) for i, row in enumerate(rows) if not _is_empty(row)}
        for i, encoded in zip(examples, encode(self.tokenizer, list(examples.values())), strict=True):
            if isinstance(encoded, BadRow):
                raise UserError(f"row {i}: {encoded.cause}: {encoded.detail}")
        scores: list[list[float]] = [[] for _ in rows]
        for i, values in zip(examples, self.score_examples(list(examples.values())), strict=True):
            scores[i] = values.mean(1).tolist()
        return scores

    def score_examples(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores [N, M] of each example's N responses by M heads."""
        if not examples:
            return []
        table = self.table(examples)
        scores = score_table(self.score_packs, table, budget=self.tokens_per_pack, progress=self.progress)
        return np.split(scores, table.first_response[1:-1])

    def table(self, examples: Sequence[Example]) -> GroupTable:
        """The examples, tokenised."""
        store = store_examples(examples, self.tokenizer)
        if store.meta["max_id"] >= self.network.config.vocabulary:
            raise UserError(f"token id {store.meta['max_id']} is beyond the model's vocabulary")
        return build_table([store], need_edges=False)[0]

    @torch.no_grad()
    def score_packs(self, packs: Sequence[Pack]) -> list[Tensor]:
        """Scores [S, M] of each pack."""
        device = self.network.head.weight.device
        return [self.network(pack.to(device)).scores for pack in packs]


def _is_empty(row: Any) -> bool:
    return isinstance(row, Mapping) and row.get("responses") == []


def _parse(row: Mapping[str, Any], number: int) -> Example:
    if not isinstance(row, Mapping):
        raise UserError(f"row {number}: not a mapping but {type(row).__name__}")
    try:
        return parse_row(dict(row), require_edges=False, allow_empty=True)
    except BadRow as error:
        raise UserError(f"row {number}: {error.cause}: {error.detail}") from None
