"""Counter-based noise: Philox4x32-10 (Salmon et al. 2011) in int64, uniforms and Gumbel noise of its words.

A value depends on its key and counter alone: not on what else is computed, in which order, or on which device.
"""

import torch
from torch import Tensor

from rmfast.kernels.common import check

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

BLOCKS, IDS = 0, 1
"""Levels of the race: noise of blocks, and of the ids within one."""

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four random 32-bit words of a counter of four and a key of two; all int64 from 0 to 2^32 - 1, of shapes that
    broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        (high_a, low_a), (high_b, low_b) = _product(MULTIPLIERS[0], c0), _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + INCREMENTS[0]) & WORD, (k1 + INCREMENTS[1]) & WORD
    return c0, c1, c2, c3


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a product of two words. By halves of b: in C++, which torch.compile makes of this, a
    product beyond int64 is undefined, and compilers do drop what only matters after one."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high word."""
    return x & WORD, x >> 32 & WORD


def row_keys(seed: int, draw_numbers: Tensor, samples: Tensor) -> Tensor:
    """A 64-bit key for each row, from which `draw_tokens` makes its noise: int64 [R].

    Philox with the seed as its key, and the counter (low and high word of the draw number, of the sample).

    Args:
        seed: of the run; modulo 2^64.
        draw_numbers: int64 [R], any bits: what tells a prompt's draw from all others.
        samples: int64 [R], which sample of that prompt.

    Raises:
        ValueError: not two int64 tensors of one length.
    """
    op = "row_keys"
    for name, x in (("draw_numbers", draw_numbers), ("samples", samples)):
        check(x.dim() == 1 and x.dtype == torch.int64, op, f"{name} must be int64 [R], got {x.dtype} {list(x.shape)}")
    check(
        draw_numbers.shape == samples.shape, op,
        f"samples must be [{len(draw_numbers)}] as draw_numbers, got {list(samples.shape)}",
    )  # fmt: skip
    key = tuple(torch.full_like(samples, word) for word in (seed & WORD, seed >> 32 & WORD))
    low, high, *_ = philox((*_split(draw_numbers), *_split(samples)), (key[0], key[1]))
    return high << 32 | low


def uniforms(keys: Tensor, positions: Tensor, level: int, index: Tensor) -> Tensor:
    """Odd multiples of 2^-53 between 0 and 1, fp64: never 0 or 1, for 52 random bits k give (k + 1/2) / 2^52 exactly.

    Philox with the row's key and the counter (index, low word of the position, level, high word of the position); of
    its first two words 26 high bits each.

    Args:
        keys, positions: int64, of shapes that broadcast with index. index: of a block or an id, below 2^32.
    """
    low, high = _split(positions)
    a, b, *_ = philox((index, low, torch.full_like(index, level), high), _split(keys))
    return ((a >> 6 << 26 | b >> 6).double() + 0.5) * 2.0**-52


def gumbel(keys: Tensor, positions: Tensor, level: int, index: Tensor) -> Tensor:
    """Standard Gumbel noise, fp64, from -3.7 to 36.8: -log(-log u) of `uniforms`."""
    return -(-uniforms(keys, positions, level, index).log()).log()
