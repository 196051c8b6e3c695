"""InfoNCE (SimCSE) of cosines, without the matrix of all pairs."""

from rmfast.kernels.info_nce.op import info_nce

__all__ = ["info_nce"]
