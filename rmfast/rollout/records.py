"""Samples as rows: the record that keeps all of them, and the rows that other commands read."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rmfast.data.example import Example
from rmfast.models.network import Network
from rmfast.rollout.draft import Request
from rmfast.rollout.options import SampleOptions, StopReason
from rmfast.rollout.policy import Sample

DIGITS = 6
"""Decimals of log-probabilities on disk."""
PER_TOKEN = ("log_prob", "behaviour_log_prob")
STRIDED = 64  # elements of each weight that its digest reads


def settings(
    network: Network,
    dtype: torch.dtype,
    requests: Sequence[Request],
    n: int,
    options: SampleOptions,
    ends: Collection[int],
) -> dict[str, Any]:
    """What samples depend on, by name: with other settings a file of samples is not gone on with."""
    prompts = hashlib.blake2b(digest_size=8)
    for request in requests:
        prompts.update(len(request.ids).to_bytes(8, "little") + request.ids.tobytes())
    return {
        "weights": weights_digest(network),
        "dtype": str(dtype).removeprefix("torch."),
        "prompts": f"{len(requests)} of digest {prompts.hexdigest()}",
        "n": n,
        "ends": sorted(ends),
        **asdict(options),
    }


def weights_digest(network: Network) -> str:
    """A number of a model's weights, of some elements of each."""
    weights = [weight for _, weight in sorted(network.named_parameters())]
    return hashlib.blake2b(strided(weights).tobytes(), digest_size=8).hexdigest()


def strided(weights: Sequence[Tensor]) -> np.ndarray:
    """fp32: some elements of each tensor, copied to the host at once."""
    flat = [weight.detach().reshape(-1) for weight in weights]
    return torch.cat([one[:: max(1, len(one) // STRIDED)].float() for one in flat]).cpu().numpy()


def record(samples: Sequence[Sample]) -> dict[str, Any]:
    """What is kept of a prompt's samples: texts, ids, why they ended, log-probabilities of each token."""
    return {
        "samples": [
            asdict(sample) | {name: _rounded(getattr(sample, name)) for name in PER_TOKEN} for sample in samples
        ]
    }


def flaw(record: Mapping[str, Any], n: int) -> str | None:
    """Why something is not what `record` makes of n samples; None where it is."""
    samples = record.get("samples")
    if not isinstance(samples, list) or len(samples) != n:
        return f"samples must be a list of {n}"
    for sample in samples:
        if not isinstance(sample, dict) or not isinstance(sample.get("text"), str):
            return "a sample must have its text"
        ids, reason = sample.get("token_ids"), sample.get("stop_reason")
        if (
            not isinstance(ids, list)
            or not ids
            or any(type(value) is not int or not 0 <= value < 2**31 for value in ids)
        ):
            return "token_ids must be a list of ids"
        if reason not in get_args(StopReason):
            return f"stop_reason must be one of {', '.join(get_args(StopReason))}"
        for name in PER_TOKEN:
            values = sample.get(name)
            if not isinstance(values, list) or len(values) != len(ids) or not all(map(_is_log_prob, values)):
                return f"{name} must be log-probabilities, one for each id"
    return None


def _is_log_prob(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e-3


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def sampled_row(
    tokenizer: PreTrainedTokenizerBase, example: Example, samples: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A prompt and its samples as a row of data without preferences, from a record's samples.

    The samples are texts, and so is a prompt of token ids: the text beside it, or what its ids say, special tokens too.

    `log_probs`: of each whole sample, raw, its eos included.
    """
    prompt: Any = example.prompt
    if example.has_ids:
        prompt = example.texts[0] if example.texts else tokenizer.decode(prompt)
    extra: dict[str, Any] = {"tools": example.tools} if example.tools else {}
    extra |= {"chat_template_kwargs": example.template_kwargs} if example.template_kwargs else {}
    return {
        "prompt": prompt,
        **extra,
        "responses": [sample["text"] for sample in samples],
        "edges": [],
        "stop_reasons": [sample["stop_reason"] for sample in samples],
        "log_probs": [round(sum(sample["log_prob"]), DIGITS) for sample in samples],
    }
