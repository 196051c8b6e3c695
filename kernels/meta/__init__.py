"""Ops of meta-learning for reward models."""

from rmfast.kernels.meta.difference import difference_loss

__all__ = ["difference_loss"]
