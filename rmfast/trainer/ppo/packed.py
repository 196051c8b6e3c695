"""Figures of tokens that are stored answer after answer ("packed")."""

import torch
from torch import Tensor


def answer_of(lengths: Tensor) -> Tensor:
    """int64 [T]: the answer that each token belongs to. lengths: int64 [B]."""
    return torch.repeat_interleave(lengths)


def last_tokens(lengths: Tensor) -> Tensor:
    """int64 [B]: where each answer's last token is. lengths: int64 [B], all of at least 1.

    Raises:
        ValueError: an answer without tokens, whose score would be given to the answer before.
    """
    if bool((lengths < 1).any()):
        raise ValueError("last_tokens: an answer has no tokens")
    return lengths.cumsum(0) - 1


def sums(values: Tensor, lengths: Tensor) -> Tensor:
    """fp64 [B]: the sum of an answer's tokens. values: [T]."""
    return torch.zeros(len(lengths), dtype=torch.float64).index_add(0, answer_of(lengths), values.double())
