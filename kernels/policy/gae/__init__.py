"""Generalised advantage estimation over packed sequences."""

from rmfast.kernels.policy.gae.op import gae

__all__ = ["gae"]
