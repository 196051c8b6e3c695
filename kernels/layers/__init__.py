"""The elementwise ops of a decoder layer."""

from rmfast.kernels.layers.norm import add_rms_norm, rms_norm
from rmfast.kernels.layers.rope import rope, split_rope
from rmfast.kernels.layers.swiglu import swiglu

__all__ = ["add_rms_norm", "rms_norm", "rope", "split_rope", "swiglu"]
