"""A trained reward model as a library: load it, score responses."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rmfast.checkpoint.export import last_tokens
from rmfast.checkpoint.network import load_checkpoint
from rmfast.checkpoint.store import MANIFEST, all_checkpoints
from rmfast.checkpoint.whole import newest_readable
from rmfast.data.example import BadRow, Example
from rmfast.data.files import current
from rmfast.data.pack import Pack
from rmfast.data.row_kinds import RESPONSES
from rmfast.data.rows import read_row
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable, build_table
from rmfast.data.tokenise import Encoded, Ids, encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.scoring.reader import first_too_long, too_long
from rmfast.evaluation.scoring.score import Progress, score_table
from rmfast.evaluation.scoring.sequences import score_distinct, without_end
from rmfast.models.config import context_window, decoder_config
from rmfast.models.hf import load_network, read_config
from rmfast.models.members import SharedNetwork
from rmfast.models.network import Network
from rmfast.models.placement import check_device, check_dtype
from rmfast.outputs.marks import ITERATE_FILE

log = logging.getLogger(__name__)


ScoredToken = Literal["last", "transformers"]
"""Which token's score a response gets: its last one's, or that of the last one that is no pad token, which
transformers' decoders take. They differ where sequences end in the pad token."""


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    label: str | int | None = None,
    scored_token: ScoredToken | None = None,
    chat_template: str | None = None,
    template_date: str | None = None,
    tokens_per_pack: int = 16384,
    progress: Progress | None = None,
) -> "RewardModel":
    """Load a reward model.

    Args:
        path: a Hugging Face folder of a `*ForSequenceClassification` model of a supported family, a run folder (its
            `model/`), or a checkpoint folder of a run.
        device: where it scores. dtype: of weights and activations; scores are fp32.
        label: which label of a classifier of several is the reward, by name or number from 0 on; "ensemble" takes all
            as heads of one.
        scored_token: "last" scores each response's last token; "transformers" the last one that is no pad token, as
            `*ForSequenceClassification` does. Default: the last; where that may be another, a warning says so.
        chat_template: jinja file or text, in place of the tokenizer's.
        template_date: YYYY-MM-DD, given to a template that reads the clock; None for the one that the model was
            trained with, or else 2024-07-26.
        tokens_per_pack: token budget of a forward pass; it changes scores by rounding only.
        progress: told how many prompts are scored, of how many.

    Raises:
        UserError: nothing there, another architecture, no reward head, several labels and none chosen, no such device
            or dtype.
    """
    check_device(device)
    check_dtype(dtype)
    path = model_folder(path)
    trained_here = (path / MANIFEST).is_file()
    if trained_here:
        network, hf = load_checkpoint(path, dtype=dtype, label=label)
    else:
        network, hf = load_network(path, label=label, dtype=dtype, weights_dtype=dtype)
    tokenizer = load_tokenizer(path, chat_template, template_date)
    if not trained_here:
        warn_of_tokens(scored_token, hf, tokenizer, path)
    skips = skipped_token(scored_token, hf)
    return RewardModel(
        network.to(device), hf, tokenizer, skips=skips, tokens_per_pack=tokens_per_pack, progress=progress
    )


def skipped_token(chosen: ScoredToken | None, hf: PreTrainedConfig) -> int | None:
    """The token that is not scored where it ends a sequence; None for none."""
    pad: int | None = hf.get_text_config().pad_token_id
    return pad if chosen == "transformers" else None


def warn_of_tokens(
    chosen: ScoredToken | None, hf: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, path: Path
) -> None:
    """Say that transformers may score another token than the last, where it may and neither was chosen."""
    if chosen is None and (note := tokens_note(hf, tokenizer)):
        log.warning("%s: %s", path, note)


def tokens_note(hf: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Where transformers may score another token than the last, a line that says so; otherwise empty."""
    pad, ends = hf.get_text_config().pad_token_id, {tokenizer.eos_token_id}
    with suppress(UserError):  # a template that is no valid jinja, which matters where it is used
        ends = last_tokens(tokenizer)
    if pad is None or pad not in ends:
        return ""
    return (
        f"its pad token, {tokenizer.convert_ids_to_tokens(pad)!r}, ends sequences, and transformers scores the last "
        "token that is no pad token, so the one before it; rmfast scores the last token (--scored-token last, "
        'rmfast.load(scored_token="last")); "transformers" in its place scores as transformers does'
    )


def model_folder(path: str | Path) -> Path:
    """The folder that a path means: itself, a run folder's `model`, or an unfinished run's newest whole checkpoint.

    Raises:
        UserError: no model of a supported family is there.
    """
    path = find_folder(path)
    decoder_config(read_config(path), str(path))
    return path


def find_folder(path: str | Path) -> Path:
    """As `model_folder`, of a model of any family, or of none."""
    path = current(Path(path))
    if not (path / "config.json").is_file() and ((model := current(path / "model")) / "config.json").is_file():
        return model
    if (path / "ensemble.json").is_file() and not (path / "model").is_dir():
        raise UserError(f"{path}: an ensemble of whole models; name its members: {path}/members/*/model")
    if (path / ITERATE_FILE).is_file():
        raise UserError(
            f"{path}: an iteration of many models; name one: {path}/round-1/ppo/model (a policy), .../meta/model"
        )
    if not (path / "config.json").is_file() and (checkpoints := all_checkpoints(path / "checkpoints")):
        return _newest(tuple(checkpoints)) or checkpoints[-1]  # which whoever reads it refuses
    return path


@cache
def _newest(checkpoints: tuple[Path, ...]) -> Path | None:
    """The newest that is whole, read once however often a command asks; what is wrong with each newer one is said."""
    found = newest_readable(checkpoints[0].parent)
    for line in found.lines() if os.environ.get("RANK", "0") == "0" else ():
        log.warning("%s", line)
    return found.path


class RewardModel:
    """Scores responses to prompts. Make one with `rmfast.load`.

    Args:
        skips: a token that is not scored where it ends a sequence, but the one before; None scores the last token.

    Attributes:
        network: the model, or several that share a trunk, each with a head.
        hf: its Hugging Face config. tokenizer: its tokenizer.
        window: tokens of the longest sequence that it takes, None without a limit (see `context_window`).
    """

    def __init__(
        self,
        network: Network | SharedNetwork,
        hf: PreTrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        skips: int | None = None,
        tokens_per_pack: int = 16384,
        progress: Progress | None = None,
    ) -> None:
        self.network, self.hf, self.tokenizer = network.eval().requires_grad_(False), hf, tokenizer
        self.skips, self.window = skips, context_window(hf)
        self.tokens_per_pack, self.progress = tokens_per_pack, progress

    def score(self, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """Reward of every response; with several heads their mean.

        The same to rounding for any batch and order. Strings: prompt + response are tokenised as one text and
        the eos is appended where it is missing. Messages: the chat template over prompt and answer, nothing appended.
        The last token is scored (see `load`).

        Args:
            rows: `{"prompt": str | messages, "responses": [str, ...]}`; TRL's preference columns work as well, in
                the order chosen, rejected.

        Returns:
            For each row a list with one number a response.

        Raises:
            UserError: a row that cannot be scored, by its number; one that is longer than the model takes.
        """
        if isinstance(rows, Mapping | str) or not isinstance(rows, Iterable):
            raise UserError(f"score takes a list of rows, not {type(rows).__name__}")
        rows = list(rows)
        examples = {i: _parse(row, i) for i, row in enumerate(rows) if not _is_empty(row)}
        for i, encoded in zip(examples, encode(self.tokenizer, list(examples.values())), strict=True):
            bad = encoded if isinstance(encoded, BadRow) else too_long(encoded, self.window)
            if bad is not None:
                raise UserError(f"row {i}: {bad.cause}: {bad.detail}")
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
        """The examples, tokenised.

        Raises:
            UserError: one that cannot be tokenised or is longer than the window, by its number; an unknown token.
        """
        if self.skips is not None:
            encoded = encode(self.tokenizer, examples)
            examples = [_cut(*pair, self.skips) for pair in zip(examples, encoded, strict=True)]
        store = store_examples(examples, self.tokenizer)
        if store.meta["max_id"] >= self.network.config.vocabulary:
            raise UserError(f"token id {store.meta['max_id']} is beyond the model's vocabulary")
        if beyond := first_too_long(store, self.window):
            raise UserError(f"example {beyond[0] + 1}: {beyond[1]}")
        return build_table([store], kind=RESPONSES)[0]

    @torch.no_grad()
    def score_packs(self, packs: Sequence[Pack]) -> list[Tensor]:
        """Scores [S, M] of each pack."""
        device = self.network.norm.weight.device
        return [self.network.score(pack.to(device)) for pack in packs]

    @torch.no_grad()
    def score_sequences(self, sequences: Sequence[Ids], *, alone: bool = False) -> np.ndarray:
        """Scores float64 [S, M] of whole sequences of token ids, int32, whatever prompt they have: see
        `score_distinct`. They must fit into the window and the vocabulary."""
        device = self.network.norm.weight.device
        return score_distinct(
            [without_end(ids, self.skips) for ids in sequences],
            lambda pack: self.network.score(pack.to(device)),
            budget=self.tokens_per_pack,
            alone=alone,
        )

    @property
    def vocabulary(self) -> int:
        """Ids that its embedding has."""
        return self.network.config.vocabulary


def _cut(example: Example, encoded: Encoded | BadRow, skips: int) -> Example:
    """The example as ready ids that end in the last token that is not `skips`; in their first one where all are."""
    if isinstance(encoded, BadRow):
        return example
    return Example(None, tuple(without_end(ids, skips).tolist() for ids in encoded.ids))


def _is_empty(row: Any) -> bool:
    return isinstance(row, Mapping) and row.get("responses") == []


def _parse(row: Mapping[str, Any], number: int) -> Example:
    if not isinstance(row, Mapping):
        raise UserError(f"row {number}: not a mapping but {type(row).__name__}")
    try:
        return read_row(f"row {number}", dict(row), kind=RESPONSES)
    except BadRow as error:
        raise UserError(f"row {number}: {error.cause}: {error.detail}") from None
