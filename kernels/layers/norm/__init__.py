"""RMSNorm, alone and fused with the residual sum before it."""

from rmfast.kernels.layers.norm.op import add_rms_norm, rms_norm

__all__ = ["add_rms_norm", "rms_norm"]
