"""RMSNorm and reward heads in one pass over the scored rows."""

from rmfast.kernels.score_head.op import score_head

__all__ = ["score_head"]
