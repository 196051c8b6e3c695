"""Codes: soft assignments of a batch's items to clusters that are used alike."""

from rmfast.kernels.sinkhorn.op import sinkhorn

__all__ = ["sinkhorn"]
