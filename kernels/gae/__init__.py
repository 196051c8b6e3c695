"""Generalised advantage estimation over packed sequences."""

from rmfast.kernels.gae.op import gae

__all__ = ["gae"]
