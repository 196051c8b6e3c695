"""Reward models of architectures that rmfast's decoder does not have, run by transformers itself.

One sequence at a time, without padding: so that no batch, no padding side and no pad token that is also an eos can
change a score. Texts become tokens as everywhere in rmfast (`rmfast.data.tokenise`): prompt and response are one text,
never a pair of segments. A model's own code is never run.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from rmfast.checkpoint.store import MANIFEST
from rmfast.data.example import BadRow, Example
from rmfast.data.tokenise import encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import UserError
from rmfast.evaluation.answers import too_long
from rmfast.evaluation.reward_model import RewardModel, find_folder, load
from rmfast.evaluation.score import Progress
from rmfast.models.config import decoder_config
from rmfast.models.hf import first_line, open_weights, read_config

CHUNK = 256  # examples tokenised at a time
LAST_TOKEN = ("ctrl", "modernbert-decoder")  # score the last token through a head of another name than `score`


def load_any(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    chat_template: str | None = None,
    tokens_per_pack: int = 16384,
    progress: Progress | None = None,
) -> "RewardModel | ForeignModel":
    """Load a reward model of any architecture: rmfast's own decoder where it can, transformers' model elsewhere.

    The arguments are those of `rmfast.load`; tokens_per_pack is of no use to transformers' models.

    Raises:
        UserError: nothing there, an architecture that transformers does not know, no reward head.
    """
    folder = find_folder(path)
    if is_foreign(folder):
        tokenizer = load_tokenizer(folder, chat_template)
        return ForeignModel(_load_foreign(folder, device, dtype), tokenizer, name=str(folder), progress=progress)
    return load(folder, device, dtype, chat_template=chat_template, tokens_per_pack=tokens_per_pack, progress=progress)


def is_foreign(path: str | Path) -> bool:
    """Whether transformers has to run the model of a path; refuses what is no reward model, before weights are read.

    Raises:
        UserError: no model, an unknown architecture, no reward head.
    """
    folder = find_folder(path)
    hf = _config(folder)
    architecture = (hf.architectures or [""])[0]
    try:
        decoder_config(hf)
    except UserError:  # another family, or a variant of a known one
        if architecture and not architecture.endswith("ForSequenceClassification"):
            raise _no_head(folder, architecture) from None
        if hf.num_labels != 1:
            raise UserError(
                f"{folder}: a classifier of {hf.num_labels} labels; a reward model has one (num_labels: 1)"
            ) from None
        return True
    if not (folder / MANIFEST).is_file() and not _has_score(folder):
        raise _no_head(folder, architecture)
    return False


class ForeignModel:
    """Scores responses to prompts as `RewardModel` does, through a transformers model. Make one with `load_any`.

    A causal model's score is that of its very last token, whatever `pad_token_id` says; encoders pool as they do.

    Attributes:
        model: the transformers model. hf: its config. tokenizer: its tokenizer.
        window: tokens of the longest sequence that it takes, None without a limit (see `context_window`).
        note: a line for people: why this is slow.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "the model",
        progress: Progress | None = None,
    ) -> None:
        self.model, self.hf, self.tokenizer = model.eval().requires_grad_(False), model.config, tokenizer
        self.name, self.progress = name, progress
        self.window = context_window(self.hf)
        self.note = (
            f"{name}: rmfast's decoder does not have this architecture ({type(model).__name__}), so transformers runs "
            "it, one sequence at a time: slower, as no prompt is shared and nothing is packed"
        )
        if hasattr(model, "score") or self.hf.model_type in LAST_TOKEN:
            # Told of a pad token, these models look for the last token that is none, and pass over an eos that is both.
            self.hf.pad_token_id = None
            self.hf.get_text_config().pad_token_id = None
        self.hf.use_cache = False

    def score_examples(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """Scores [N, 1] of each example's N responses.

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
                distinct = {ids.tobytes(): ids for ids in encoded.ids}  # twins are computed once, and so tie exactly
                rewards = {key: self._score(ids) for key, ids in distinct.items()}
                scores.append(np.stack([rewards[ids.tobytes()] for ids in encoded.ids]))
            if self.progress is not None:
                self.progress(len(scores), len(examples))
        return scores

    @torch.no_grad()
    def _score(self, ids: np.ndarray) -> np.ndarray:
        """Logits [1] of one sequence."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if ids.max() >= vocabulary:
            raise UserError(f"token id {ids.max()} is beyond the vocabulary of {self.name}, {vocabulary}")
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.model.device)
        logits = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return logits[0].double().cpu().numpy()


def context_window(hf: PreTrainedConfig) -> int | None:
    """Tokens of the longest sequence that a model of transformers is made for; None where its config sets no limit."""
    limit = getattr(hf.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0 or not getattr(hf, "position_biased_input", True):
        return None  # relative positions only
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(hf)
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    # RoBERTa and its like count positions from behind the pad token's.
    rows = [t.num_embeddings - t.padding_idx - 1 for t in tables if getattr(t, "padding_idx", None) is not None]
    return min([limit, *rows])


def _load_foreign(folder: Path, device: str | torch.device, dtype: torch.dtype) -> PreTrainedModel:
    logging.disable_progress_bar()
    model: Any
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # every kind comes out of the library's loading code
        raise UserError(f"{folder}: transformers cannot load it as a reward model: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise _no_head(folder, f"without {', '.join(missing[:3])}")
    loaded: PreTrainedModel = model.to(device)
    return loaded


def _config(folder: Path) -> PreTrainedConfig:
    try:
        return read_config(folder)
    except UserError:
        raw: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = raw.get("model_type") if isinstance(raw, dict) else None
        if kind is None or kind in CONFIG_MAPPING:
            raise
        own = "; its own code (auto_map) is never run" if raw.get("auto_map") else ""
        raise UserError(f"{folder}: neither rmfast nor transformers has the architecture {kind!r}{own}") from None


def _has_score(folder: Path) -> bool:
    with open_weights(folder) as weights:
        return "score.weight" in weights


def _no_head(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder}: no reward head ({what or 'no score.weight'}): this is no reward model; "
        "train one from it, or let it judge (--judge)"
    )
