"""The elementwise ops of a decoder layer."""

from rmfast.kernels.layers.op import add_rms_norm, rms_norm, rope, swiglu

__all__ = ["add_rms_norm", "rms_norm", "rope", "swiglu"]
