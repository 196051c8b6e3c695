"""Reward models of architectures that rmfast's decoder does not have, run by transformers itself.

One sequence at a time, without padding: so that no batch, no padding side and no pad token that is also an eos can
change a score. Texts become tokens as everywhere in rmfast (`rmfast.data.tokenise`): prompt and response are one text,
never a pair of segments. Code in a model folder is never run.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import (
    CONFIG_MAPPING,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from rmfast.checkpoint.store import MANIFEST
from rmfast.data.example import BadRow, Example
from rmfast.data.tokenise import Ids, encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError, first_line
from rmfast.evaluation.scoring.reader import too_long
from rmfast.evaluation.scoring.reward_model import RewardModel, ScoredToken, find_folder, load, warn_of_tokens
from rmfast.evaluation.scoring.score import Progress
from rmfast.models.config import context_window, decoder_config
from rmfast.models.folder import Reader, read_json
from rmfast.models.hf import no_head, open_model, open_named, read_config
from rmfast.models.names import SCORE, choose_row
from rmfast.models.placement import check_device, check_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(layers?|h|block|blocks)\.\d+\.")
CHUNK = 256  # examples tokenised at a time
LAST_TOKEN = ("ctrl", "modernbert-decoder")  # score the last token through a head of another name than `score`


def load_any(
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
) -> "RewardModel | ForeignModel":
    """Load a reward model of any architecture: rmfast's decoder where it can, transformers' model elsewhere.

    The arguments are those of `rmfast.load`; tokens_per_pack is of no use to transformers' models.

    Raises:
        UserError: nothing there, an architecture that transformers does not know, no reward head, several labels, no
            such device or dtype.
    """
    folder = find_folder(path)
    options: dict[str, Any] = {"scored_token": scored_token, "progress": progress}
    if is_foreign(folder, label):
        check_device(device)
        check_dtype(dtype)
        tokenizer = load_tokenizer(folder, chat_template, template_date)
        model, row = _load_foreign(folder, device, dtype, label)
        if scores_a_token(model):
            warn_of_tokens(scored_token, model.config, tokenizer, folder)
        return ForeignModel(model, tokenizer, row=row, name=str(folder), **options)
    options |= {"label": label, "chat_template": chat_template, "template_date": template_date}
    return load(folder, device, dtype, tokens_per_pack=tokens_per_pack, **options)


def is_foreign(path: str | Path, label: str | int | None = None) -> bool:
    """Whether transformers has to run the model of a path; refuses what is no reward model, before weights are read.

    Raises:
        UserError: no model, an unknown architecture, no reward head, several labels and none chosen.
    """
    folder = find_folder(path)
    hf = _config(folder)
    try:
        decoder_config(hf)
    except UserError:  # another family, or a variant of a known one
        with _open_foreign(folder, hf) as found:
            choose_row(label, found.rows, hf, folder)
        return True
    if not (folder / MANIFEST).is_file():
        with open_model(folder, hf, label=label) as weights:
            if SCORE not in weights:
                raise no_head(folder, weights, (hf.architectures or [SCORE])[0])
    return False


class ForeignModel:
    """Scores responses to prompts as `RewardModel` does, through a transformers model. Make one with `load_any`.

    A causal model's score is that of its very last token, whatever `pad_token_id` says, unless `scored_token` is
    "transformers"; encoders pool as they do.

    Args:
        row: the label that is the reward; None for all, as members of an ensemble.

    Attributes:
        model: the transformers model. hf: its config. tokenizer: its tokenizer.
        window: tokens of the longest sequence that it takes, None without a limit (see `longest_sequence`).
        note: a line for people: why this is slow.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: PreTrainedTokenizerBase,
        *,
        row: int | None = None,
        scored_token: ScoredToken | None = None,
        name: str = "the model",
        progress: Progress | None = None,
    ) -> None:
        self.model, self.hf, self.tokenizer = model.eval().requires_grad_(False), model.config, tokenizer
        self.row, self.name, self.progress = row, name, progress
        self.window = longest_sequence(self.hf)
        self.note = (
            f"{name}: rmfast's decoder does not have this architecture ({type(model).__name__}), so transformers runs "
            "it, one sequence at a time: slower, as no prompt is shared and nothing is packed"
        )
        if scores_a_token(model) and scored_token != "transformers":
            # Told of a pad token, these models look for the last token that is none, and pass over an eos that is both.
            self.hf.pad_token_id = None
            self.hf.get_text_config().pad_token_id = None
        self.hf.use_cache = False

    def score_examples(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores [N, 1] of each example's N responses, or [N, M] of an ensemble's M heads.

        Raises:
            UserError: an example that cannot be tokenised or is longer than the window, by its number.
        """
        scores: list[np.ndarray] = []
        for begin in range(0, len(examples), CHUNK):
            for encoded in encode(self.tokenizer, examples[begin : begin + CHUNK]):
                number = len(scores) + 1
                if isinstance(encoded, BadRow):
                    raise UserError(f"example {number}: {encoded.cause}: {encoded.detail}")
                if bad := too_long(encoded, self.window):
                    raise UserError(f"example {number}: {bad.cause}: {bad.detail} ({self.name})")
                scores.append(self.score_sequences(encoded.ids))
            if self.progress is not None:
                self.progress(len(scores), len(examples))
        return scores

    def score_sequences(self, sequences: Sequence[Ids], *, alone: bool = True) -> np.ndarray:
        """Scores float64 [S, M] of whole sequences of token ids. Each runs by itself, whatever `alone` says."""
        distinct = {ids.tobytes(): ids for ids in sequences}  # duplicates once, so that they tie exactly
        rewards = {key: self._score(ids) for key, ids in distinct.items()}
        return np.stack([rewards[ids.tobytes()] for ids in sequences])

    @property
    def heads(self) -> int:
        """How many rewards it gives."""
        return int(self.hf.num_labels or 1) if self.row is None else 1

    @property
    def vocabulary(self) -> int:
        """Ids that its embedding has."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @torch.no_grad()
    def _score(self, ids: np.ndarray) -> np.ndarray:
        """Logits [1] or [M] of one sequence."""
        if ids.max() >= self.vocabulary:
            raise UserError(f"token id {ids.max()} is beyond the vocabulary of {self.name}, {self.vocabulary}")
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.model.device)
        logits = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        rows = slice(None) if self.row is None else slice(self.row, self.row + 1)
        return logits[0, rows].double().cpu().numpy()


def scores_a_token(model: "PreTrainedModel") -> bool:
    """Whether a classifier's score is that of one token, rather than of all."""
    return hasattr(model, "score") or model.config.model_type in LAST_TOKEN


def longest_sequence(hf: PreTrainedConfig) -> int | None:
    """As `context_window`, and no more than the position table of the model has rows for."""
    limit = context_window(hf, switches=True)
    if limit is None:
        return None
    tables = (module for name, module in _skeleton(hf).named_modules() if name.endswith("position_embeddings"))
    # RoBERTa and its like count positions from behind the pad token's.
    rows = [t.num_embeddings - t.padding_idx - 1 for t in tables if getattr(t, "padding_idx", None) is not None]
    return min([limit, *rows])


def _skeleton(hf: PreTrainedConfig, labels: int | None = None) -> "PreTrainedModel":
    """transformers' classifier of a config, without weights.

    Raises:
        UserError: transformers has none of this architecture.
    """
    from transformers import AutoModelForSequenceClassification  # it takes seconds to import

    config = copy.deepcopy(hf)
    if labels is not None:
        config.num_labels = labels
    try:
        with torch.device("meta"):
            return cast("PreTrainedModel", AutoModelForSequenceClassification.from_config(config))
    except Exception as error:  # every kind comes out of the library's code
        raise UserError(
            f"transformers has no classifier of architecture {hf.model_type!r}, so no reward model: {first_line(error)}"
        ) from error


@dataclass(frozen=True)
class _Found:
    """A folder's weights for transformers' classifier of its architecture.

    Attributes:
        kind: the classifier's class. rows: labels that its head has.
        weights: by the architecture's names. changed: whether the files have other names, which transformers cannot
            read by itself.
    """

    kind: "type[PreTrainedModel]"
    rows: int
    weights: Reader
    changed: bool


@contextmanager
def _open_foreign(folder: Path, hf: PreTrainedConfig) -> Iterator[_Found]:
    """What a folder holds for transformers' classifier.

    Raises:
        UserError: no reward head.
    """
    architecture = (hf.architectures or [""])[0]
    two, three = (_skeleton(hf, labels) for labels in (2, 3))
    shapes = {name: weight.shape for name, weight in two.state_dict().items()}
    heads = [name for name, weight in three.state_dict().items() if weight.shape != shapes[name]]
    with open_named(folder, hf, shapes) as (weights, changed):
        found = [weights[name].shape[0] for name in heads if name in weights]
        if not found:  # a config that does not say gets 2 labels: nothing tells of a head but its weights
            names = ", ".join(sorted(heads)[:2])
            claims = architecture.endswith("ForSequenceClassification")
            unknown = {name: weight for name, weight in weights.items() if name not in shapes}
            raise no_head(folder, unknown, f"without {names}" if claims else architecture or names)
        yield _Found(type(two), found[0], weights, changed)


def _load_foreign(
    folder: Path, device: str | torch.device, dtype: torch.dtype, label: str | int | None
) -> "tuple[PreTrainedModel, int | None]":
    """The model, and the row of its head that the label means."""
    logging.disable_progress_bar()
    hf = _config(folder)
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "trust_remote_code": False}
    with _open_foreign(folder, hf) as found:
        row = choose_row(label, found.rows, hf, folder)
        hf.num_labels = found.rows  # the head decides: a config that does not say gets 2
        where, kind = cast(Any, folder), cast(Any, found.kind)
        if found.changed:
            where, options["state_dict"] = None, {name: weight() for name, weight in found.weights.items()}
        try:
            model, info = kind.from_pretrained(where, config=hf, **options)
        except Exception as error:  # every kind comes out of the library's loading code
            raise UserError(f"{folder}: transformers cannot load it as a reward model: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if layers := [name for name in missing if _LAYER.search(name)]:
        raise UserError(f"{folder}: weight {layers[0]} is missing: the folder does not match its config.json")
    if missing:
        raise no_head(folder, {}, f"without {', '.join(missing[:3])}")
    if unused := sorted(name for name in info["unexpected_keys"] if _LAYER.search(name)):
        raise UserError(f"{folder}: weight {unused[0]} is part of no layer that config.json names")
    loaded: PreTrainedModel = model.to(device)
    return loaded, row


def _config(folder: Path) -> PreTrainedConfig:
    try:
        return read_config(folder)
    except UserError:
        raw = read_json(folder / "config.json")
        kind = raw.get("model_type")
        if kind is None or kind in CONFIG_MAPPING:
            raise
        code = "; code in a model folder (auto_map) is never run" if raw.get("auto_map") else ""
        raise UserError(f"{folder}: neither rmfast nor transformers has the architecture {kind!r}{code}") from None
