"""Attention over packed prompt groups whose responses share one stored prompt."""

from rmfast.kernels.prefix_attention.flash import flash_lengths
from rmfast.kernels.prefix_attention.layout import prefix_layout
from rmfast.kernels.prefix_attention.op import prefix_attention

__all__ = ["flash_lengths", "prefix_attention", "prefix_layout"]
