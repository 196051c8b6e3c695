"""Reward models with a real tokenizer in folders, and what plain transformers gives rows, one sequence at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from tests.runs import DECODER
from tests.tiny import hf_scores, save_hf_model

TEXT_VOCABULARY = 4096  # of the quickstart's tokenizer
CLOSE = 1e-5  # of the largest score


def save_reward_model(folder: Path, name: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """One of tests.tiny's random reward models, with the quickstart's tokenizer."""
    # A window that the longest of the rows fits into.
    save_hf_model(name, folder, seed, **{"vocab_size": TEXT_VOCABULARY, "max_position_embeddings": 8192} | changes)
    AutoTokenizer.from_pretrained(DECODER).save_pretrained(folder)
    return folder


def token_ids(tokenizer: PreTrainedTokenizerBase, prompt: Any, answer: Any) -> list[int]:
    """Texts: tokenised as one, one bos at most, eos appended where it is missing. Messages: the template alone."""
    if isinstance(prompt, list):
        turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        return tokenizer.apply_chat_template([*prompt, *turns], tokenize=True, return_dict=False)
    ids = tokenizer(prompt + answer)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids if ids and ids[-1] == eos else [*ids, eos]


@torch.no_grad()
def transformers_scores(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Scores of `responses` by a Hugging Face folder, the mean over heads."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [
        [float(hf_scores(model, [token_ids(tokenizer, row["prompt"], answer)]).mean()) for answer in row["responses"]]
        for row in rows
    ]


def assert_same_scores(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    """Same shape, and differences of at most `CLOSE` of the largest score; the scores must differ to prove anything."""
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    a, b = (np.array([value for row in rows for value in row]) for rows in (ours, theirs))
    assert np.isfinite(b).all() and (b.size < 2 or np.ptp(b) > 0.1 * np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE * np.abs(b).max())
