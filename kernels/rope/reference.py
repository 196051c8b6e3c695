"""RoPE in plain torch."""

import torch
from torch import Tensor


def tables(positions: Tensor, inv_freq: Tensor, dtype: torch.dtype) -> Tensor:
    """cos and sin [2, T, D / 2] of positions [T] times inv_freq [D / 2], with the angles in `dtype`."""
    angles = positions.to(dtype)[:, None] * inv_freq.to(dtype)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, D]; cos, sin [T, 1, D / 2]: the first half of D is rotated against the second (Hugging Face's way)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
