"""Export to a Hugging Face folder, and the proof that transformers gives the scores or log-probabilities we do."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from rmfast import signals
from rmfast.data.example import Example
from rmfast.data.files import folder_written_whole
from rmfast.data.probe import readable
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable
from rmfast.data.tokenise import Encoded, encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import RunError, UserError
from rmfast.models.config import DecoderConfig
from rmfast.models.save import SharedWeights, save_hf
from rmfast.outputs.marks import kept_model, mark_model

if TYPE_CHECKING:  # transformers' models take 3 s of a CPU to import: at the end of a run, not before its first step
    from transformers import PreTrainedModel

CHECK_TEXTS = (  # tokenised, and by `rmfast export` scored, on both sides of an export
    Example(prompt="What is the capital of France?\n", responses=("Paris.", "I do not know, and I do not want to.")),
    Example(prompt="", responses=("One line.",)),
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of a score or log-probability from transformers', relative to the largest one."""
LATER = "all steps are saved, the model is not exported yet"


def choose_pad_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int, ends: Collection[int] = ()) -> int:
    """A token to pad with that is no sequence's last: never the eos.

    transformers scores the last token that is not the pad token. With pad == eos it would score the one before.

    Args:
        vocabulary: rows of the embedding; the token must have one.
        ends: last tokens of the data's sequences.

    Raises:
        UserError: the tokenizer has no token for it; its chat template is no valid jinja.
    """
    pad = tokenizer.pad_token_id
    last = last_tokens(tokenizer) | set(ends)
    if pad is not None and pad not in last and pad < vocabulary:
        return pad
    special = {i: t for i, t in sorted(tokenizer.added_tokens_decoder.items()) if t.special and i < vocabulary}
    candidates = [i for i, token in special.items() if "pad" in token.content.lower()]
    candidates += [i for i in (tokenizer.unk_token_id, tokenizer.bos_token_id) if i is not None]
    candidates += list(special)
    for candidate in candidates:
        if candidate not in last and candidate < vocabulary:
            return candidate
    raise UserError(
        "the tokenizer has no special token besides its eos to pad with: add one (tokenizer.add_special_tokens("
        '{"pad_token": "<|pad|>"})), resize the embedding, and save both'
    )


def last_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that texts and conversations end in."""
    return _template_ends(tokenizer) | {tokenizer.eos_token_id}


def _template_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Last tokens of conversations under the chat template."""
    encoded = encode(tokenizer, readable(tokenizer))
    return {int(ids[-1]) for made in encoded if isinstance(made, Encoded) for ids in made.ids}


@dataclass(frozen=True, eq=False)
class ModelParts:
    """What a Hugging Face folder is made of.

    Args:
        hf: the config that the model began with. config: its sizes.
        state: all weights, by our names; a policy's has no reward heads.
        dtype: of the weights in the folder.
        ends: see `choose_pad_token`; of a policy, the ids that end its samples.
        merged: an adapter was added to the weights, which rounds them to `dtype` once more.
        shared: see `save_hf`.
    """

    hf: PreTrainedConfig
    config: DecoderConfig
    state: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    ends: Collection[int] = ()
    merged: bool = False
    shared: SharedWeights | None = None

    @property
    def slack(self) -> float:
        """How many times `TOLERANCE` an export may differ from what was trained."""
        return 2.0 if self.merged else 1.0


def publish_model(folder: Path, parts: ModelParts, *, sequences: Sequence[list[int]], scores: Tensor) -> float:
    """Write a reward model's Hugging Face folder under a temporary name, check it, and rename it; one that rmfast wrote
    before is replaced.

    Args:
        parts: whose state is emptied, for transformers loads another copy to check.
        sequences: token ids. scores: fp32 [len(sequences), M], what the trained model gives them.

    Returns:
        Largest difference of a score from transformers', relative to the largest score.

    Raises:
        UserError: a folder of that name holds what rmfast did not write.
        RunError: the folder gives other tokens or scores; it keeps its temporary name.
    """
    return _write_checked(folder, parts, partial(check_export, sequences=sequences, scores=scores))


def publish_policy(
    folder: Path, parts: ModelParts, *, sequences: Sequence[list[int]], log_probs: Sequence[Tensor]
) -> float:
    """As `publish_model`, of a policy.

    Args:
        sequences: token ids. log_probs: fp32 [L] of each, of its last L tokens, what the trained policy gives them
            at temperature 1 over the tokenizer's ids.

    Returns:
        Largest difference of a log-probability from transformers', relative to the largest (see `check_policy`).
    """
    ids = min(len(parts.tokenizer), parts.config.vocabulary)
    check = partial(check_policy, sequences=sequences, log_probs=log_probs, ids=ids)
    return _write_checked(folder, parts, check)


def _write_checked(folder: Path, parts: ModelParts, check: Callable[..., float]) -> float:
    if (file := kept_model(folder)) is not None:
        raise UserError(f"{folder}: rmfast did not write {file}, and will not remove it; move it")
    with folder_written_whole(folder) as temporary:
        signals.check(LATER)
        write_model(temporary, parts)
        signals.check(LATER)
        parts.state.clear()
        check_tokenizer(temporary, parts.tokenizer)
        return check(temporary, dtype=parts.dtype, slack=parts.slack)


def write_model(folder: Path, parts: ModelParts) -> None:
    """Write a new Hugging Face folder."""
    pad = choose_pad_token(parts.tokenizer, parts.config.vocabulary, parts.ends)
    folder.mkdir(parents=True)
    write_tokenizer(parts.tokenizer, folder, pad)
    written = save_hf(
        folder,
        parts.hf,
        parts.config,
        parts.state,
        dtype=parts.dtype,
        pad_token_id=pad,
        ends=parts.ends,
        shared=parts.shared,
    )
    mark_model(folder, written)


def rows_to_check(table: GroupTable) -> np.ndarray:
    """Some rows of a table, of several lengths, by whose scores an export is checked."""
    by_length = np.argsort(table.stored, kind="stable")
    return np.unique(by_length[[0, len(table) // 4, len(table) // 2]])


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, pad: int) -> None:
    """Save a tokenizer that pads with the token `pad`, as the model's config says."""
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.save_pretrained(folder)
    tokenizer.pad_token = before
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    # tokenizer.json has all rules. The classes of other families add rules, which differ between versions
    # of transformers, and version 4 does not know version 5's class without any, nor a list of extra tokens.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load an exported folder's tokenizer: it must give the ids that the model was trained with.

    Raises:
        RunError: other ids, as after a lost bos or chat template.
    """
    exported = load_tokenizer(folder)
    examples = [*CHECK_TEXTS, *readable(tokenizer)]
    try:
        ours, theirs = store_examples(examples, tokenizer), store_examples(examples, exported)
    except UserError as error:
        raise RunError(f"{folder}: the exported tokenizer cannot read what the trained one can: {error}") from None
    if not np.array_equal(ours.tokens, theirs.tokens) or not np.array_equal(ours.token_start, theirs.token_start):
        raise RunError(f"{folder}: the exported tokenizer or its chat template gives other token ids; do not use it")


@torch.no_grad()
def check_export(
    folder: Path, sequences: Sequence[list[int]], scores: Tensor, dtype: torch.dtype, slack: float = 1.0
) -> float:
    """Load an exported folder with transformers and score some sequences in one padded batch.

    Args:
        sequences: token ids. scores: fp32 [len(sequences), M], what we give them.

    Returns:
        Largest difference relative to the largest score.

    Raises:
        RunError: the difference exceeds `slack` times `TOLERANCE`.
    """
    model = _loaded(classifier_class(folder), folder, dtype)
    pad = model.config.pad_token_id
    length = max(len(s) for s in sequences)
    ids = torch.tensor([[*s, *[pad] * (length - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sequences])
    theirs = model(input_ids=ids, attention_mask=mask).logits.float()
    scale = float(scores.abs().max().clamp(min=1e-6))
    what = "scores the exported model differently"
    return _compared(folder, theirs, scores, scale, slack * TOLERANCE[dtype], what, "score")


def classifier_class(folder: Path) -> Any:
    """What loads a folder's reward model in transformers: its own class, or where it has none of this architecture
    (Granite's), one that it would make as it makes those of others."""
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING

    kind = type(AutoConfig.from_pretrained(folder))
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification
    trunk: Any = MODEL_MAPPING[kind]
    name = trunk.__name__.removesuffix("Model") + "ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, trunk.__mro__[1]), {})


@torch.no_grad()
def check_policy(
    folder: Path,
    sequences: Sequence[list[int]],
    log_probs: Sequence[Tensor],
    dtype: torch.dtype,
    ids: int,
    slack: float = 1.0,
) -> float:
    """Load an exported folder with transformers and take the log-probabilities of some sequences, one at a time.

    Args:
        sequences: token ids. log_probs: fp32 [L] of each, of its last L tokens, what we give them over the first `ids`
            ids.

    Returns:
        Largest difference relative to the largest log-probability or, where all are smaller, that of a guess, log ids.

    Raises:
        RunError: the difference exceeds `slack` times `TOLERANCE`.
    """
    from transformers import AutoModelForCausalLM

    model = _loaded(AutoModelForCausalLM, folder, dtype)
    theirs = []
    for sequence, ours in zip(sequences, log_probs, strict=True):
        tokens = torch.tensor([sequence])
        logits = model(input_ids=tokens, logits_to_keep=len(ours) + 1).logits[0, :-1, :ids].float()
        theirs.append(logits.log_softmax(-1).gather(1, tokens[0, len(sequence) - len(ours) :, None])[:, 0])
    ours = torch.cat(list(log_probs))
    scale = max(float(ours.abs().max()), math.log(ids))
    what = "gives other log-probabilities of the exported policy"
    return _compared(folder, torch.cat(theirs), ours, scale, slack * TOLERANCE[dtype], what, "log-probability")


def _loaded(kind: Any, folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    logging.disable_progress_bar()
    model: PreTrainedModel = kind.from_pretrained(folder, dtype=dtype)
    return model.eval()


def _compared(
    folder: Path, theirs: Tensor, ours: Tensor, scale: float, tolerance: float, what: str, figure: str
) -> float:
    """The largest difference, relative to `scale`."""
    difference = float((theirs - ours).abs().max() / scale)
    if not difference <= tolerance:
        raise RunError(
            f"{folder}: transformers {what} (by {difference:.1e} of the largest {figure}); "
            "the folder is kept for inspection, do not use it"
        )
    return difference
