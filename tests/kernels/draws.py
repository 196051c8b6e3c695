"""What tests of the draw share: logits, keys, the truth by a sort in fp64, transformers' processors, and chi-square."""

import math
from typing import Any

import torch
import transformers
from torch import Tensor

from rmfast.kernels import Drawn, draw_tokens, row_keys

DRAWS = 20_000
ALL: dict[str, Any] = {"temperature": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.3}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.1},
    "penalty": {"repetition_penalty": 1.3},
    "all": ALL,
}


def keys_of(rows: int, seed: int = 0) -> Tensor:
    return row_keys(seed, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def zeros(rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.int64)


def with_seen(options: dict[str, Any], seen: Tensor) -> dict[str, Any]:
    return options | ({"seen": seen} if "repetition_penalty" in options else {})


def processed(logits: Tensor, options: dict[str, Any], seen: Tensor) -> Tensor:
    """Scores [R, V] as transformers' `generate` would draw from: -inf where a token is left."""
    made = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    asked = [make(options[name]) for name, make in made.items() if name in options]
    everyone = torch.arange(logits.shape[1]).expand_as(logits)
    ids = torch.where(seen, everyone, logits.shape[1])  # one beyond the vocabulary is no token
    return transformers.LogitsProcessorList(asked)(ids, logits.clone())


def truth(logits: Tensor, options: dict[str, Any], seen: Tensor) -> Tensor:
    """Probabilities [V] of one row in fp64, by a sort; equal scores are kept or left together."""
    scores = logits.double()
    if penalty := options.get("repetition_penalty"):
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores / options.get("temperature", 1.0)
    if k := options.get("top_k"):
        scores = scores.masked_fill(scores < scores.sort(descending=True)[0][k - 1], -math.inf)
    if "top_p" in options:
        before = torch.stack([scores.softmax(0)[scores > score].sum() for score in scores])
        scores = scores.masked_fill(before >= options["top_p"], -math.inf)
    if least := options.get("min_p"):
        scores = scores.masked_fill(scores.softmax(0) < least * scores.softmax(0).max(), -math.inf)
    return scores.softmax(0)


def p_value(tokens: Tensor, probabilities: Tensor) -> float:
    """Of Pearson's chi-square; ids that are expected less than 5 times share a bin, which has that at least."""
    expected = probabilities * len(tokens)
    counts = tokens.bincount(minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    order = expected.argsort(descending=True)
    expected, counts = expected[order], counts[order]
    alone = int((expected >= 5).sum())
    while 0 < expected[alone:].sum() < 5:
        alone -= 1
    bins = [torch.cat([x[:alone], x[alone:].sum()[None]]) for x in (expected, counts)]
    expected, counts = (x[: alone + bool(bins[0][-1] > 0)] for x in bins)
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(expected) - 1.0, dtype=torch.float64)
    return torch.special.gammaincc(freedom / 2, statistic / 2).item()


def drawn_many(seed: int, logits: Tensor, impl: str = "reference", **options: Any) -> Drawn:
    """20,000 draws from logits [V]; draw number, sample and position differ by turns."""
    place = torch.arange(DRAWS)
    keys, positions = row_keys(seed, place // 100, place // 10 % 10), place % 10
    parts = []
    for start in range(0, DRAWS, 500):
        here = slice(start, start + 500)
        rows = {name: x.expand(500, -1) if isinstance(x, Tensor) else x for name, x in options.items()}
        parts.append(draw_tokens(logits.expand(500, -1), keys[here], positions[here], impl=impl, **rows))
    return Drawn(*map(torch.cat, zip(*parts, strict=True)))
