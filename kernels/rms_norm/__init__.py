"""RMSNorm, alone and fused with the residual sum before it."""

from rmfast.kernels.rms_norm.op import add_rms_norm, rms_norm

__all__ = ["add_rms_norm", "rms_norm"]
