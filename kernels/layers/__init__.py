"""The elementwise ops of a decoder layer."""

from rmfast.kernels.layers.norm import add_rms_norm, rms_norm
from rmfast.kernels.layers.rope import rope, rope_tables, rotate, split_rope
from rmfast.kernels.layers.swiglu import swiglu

__all__ = ["add_rms_norm", "rms_norm", "rope", "rope_tables", "rotate", "split_rope", "swiglu"]
