"""Attention over packed prompt groups whose responses share one stored prompt."""

from rmfast.kernels.attention.flash import flash_lengths
from rmfast.kernels.attention.layout import prefix_layout
from rmfast.kernels.attention.op import prefix_attention

__all__ = ["flash_lengths", "prefix_attention", "prefix_layout"]
