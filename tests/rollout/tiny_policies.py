"""Tiny language models of every family, as transformers and as the sampler have them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rmfast.models.hf import load_network
from rmfast.models.network import Network
from rmfast.rollout.draft import Draft, Request
from rmfast.rollout.sampler import Sampler
from tests.runs import DECODER
from tests.scoring import TEXT_VOCABULARY
from tests.tiny import VOCABULARY, hf_config, randomised


def language_model(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family, in fp32."""
    config = hf_config(name, **changes)
    return randomised(AutoModelForCausalLM.from_config(config, dtype=torch.float32), seed)


def network_of(model: PreTrainedModel, folder: Path) -> Network:
    """The same weights as a network of ours."""
    model.save_pretrained(folder)
    return load_network(folder, heads=0, lm=True)[0].eval().requires_grad_(False)


def save_policy(folder: Path, name: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A random model with the quickstart's tokenizer."""
    sizes = {"vocab_size": TEXT_VOCABULARY, "max_position_embeddings": 8192}
    language_model(name, seed, **sizes | changes).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DECODER).save_pretrained(folder)
    return folder


def requests(lengths: Sequence[int]) -> list[Request]:
    """Random prompts of so many tokens."""
    rng = np.random.default_rng(0)
    return [Request(rng.integers(3, VOCABULARY, n).astype(np.int32), 1000 + i) for i, n in enumerate(lengths)]


def sampled(sampler: Sampler, prompts: Sequence[Request], n: int) -> list[list[Draft]]:
    """All samples, in the prompts' order."""
    found = list(sampler.sample(prompts, n))
    assert sorted(number for number, _ in found) == list(range(len(prompts)))
    return [drafts for _, drafts in sorted(found, key=lambda item: item[0])]


@torch.no_grad()
def logits_of(model: PreTrainedModel, request: Request, ids: np.ndarray) -> torch.Tensor:
    """What transformers computes, [L, V], each row the logits of one of a sample's tokens."""
    whole = torch.tensor(np.concatenate((request.ids, ids))[None].astype(np.int64))
    logits: torch.Tensor = model(whole).logits[0, len(request.ids) - 1 : -1]
    return logits
