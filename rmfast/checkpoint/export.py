"""Export to a Hugging Face folder, and the proof that transformers scores it as we do."""

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from rmfast.data.example import Example
from rmfast.data.files import publish
from rmfast.data.probe import readable
from rmfast.data.store import store_examples
from rmfast.data.table import GroupTable
from rmfast.data.tokenise import Encoded, encode
from rmfast.data.tokenizer import load_tokenizer
from rmfast.errors import RunError, UserError
from rmfast.models.config import DecoderConfig
from rmfast.models.save import save_hf
from rmfast.outputs.marks import kept_model, mark_model

CHECK_TEXTS = (  # tokenised, and by `rmfast export` scored, on both sides of an export
    Example(prompt="What is the capital of France?\n", responses=("Paris.", "I do not know, and I do not want to.")),
    Example(prompt="", responses=("One line.",)),
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference of a score from transformers', relative to the largest score."""


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


def publish_model(
    folder: Path,
    *,
    hf: PreTrainedConfig,
    config: DecoderConfig,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    sequences: Sequence[list[int]],
    scores: Tensor,
    ends: Collection[int] = (),
) -> float:
    """Write a Hugging Face folder under a temporary name, check it, and rename it; one that rmfast wrote before is
    replaced.

    Args:
        state: as for `write_model`; emptied, for transformers loads another copy to check.
        sequences: token ids. scores: fp32 [len(sequences), M], what the trained model gives them.

    Returns:
        Largest difference of a score from transformers', relative to the largest score.

    Raises:
        UserError: a folder of that name holds what rmfast did not write.
        RunError: the folder gives other tokens or scores; it keeps its temporary name.
    """
    if (file := kept_model(folder)) is not None:
        raise UserError(f"{folder}: rmfast did not write {file}, and will not remove it; move it")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    write_model(temporary, hf=hf, config=config, state=state, tokenizer=tokenizer, dtype=dtype, ends=ends)
    state.clear()
    check_tokenizer(temporary, tokenizer)
    difference = check_export(temporary, sequences, scores, dtype)
    publish(temporary, folder)
    return difference


def write_model(
    folder: Path,
    *,
    hf: PreTrainedConfig,
    config: DecoderConfig,
    state: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype,
    ends: Collection[int] = (),
) -> None:
    """Write a new Hugging Face folder.

    Args:
        state: all weights, by our names.
        dtype: of the weights in the folder.
        ends: see `choose_pad_token`.
    """
    pad = choose_pad_token(tokenizer, config.vocabulary, ends)
    folder.mkdir(parents=True)
    write_tokenizer(tokenizer, folder, pad)
    save_hf(folder, hf, config, state, dtype=dtype, pad_token_id=pad)
    mark_model(folder)


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
def check_export(folder: Path, sequences: Sequence[list[int]], scores: Tensor, dtype: torch.dtype) -> float:
    """Load an exported folder with transformers and score some sequences in one padded batch.

    Args:
        sequences: token ids. scores: fp32 [len(sequences), M], what we give them.

    Returns:
        Largest difference relative to the largest score.

    Raises:
        RunError: the difference exceeds `TOLERANCE`.
    """
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    pad = model.config.pad_token_id
    length = max(len(s) for s in sequences)
    ids = torch.tensor([[*s, *[pad] * (length - len(s))] for s in sequences])
    mask = torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sequences])
    theirs = model(input_ids=ids, attention_mask=mask).logits.float()
    difference = float((theirs - scores).abs().max() / scores.abs().max().clamp(min=1e-6))
    if not difference <= TOLERANCE[dtype]:
        raise RunError(
            f"{folder}: transformers scores the exported model differently (by {difference:.1e} of the largest score); "
            "the folder is kept for inspection, do not use it"
        )
    return difference
