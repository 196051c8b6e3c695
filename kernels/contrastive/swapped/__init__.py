"""Swapped prediction (SwAV): each view of an item predicts the other's code."""

from rmfast.kernels.contrastive.swapped.op import swapped_prediction_loss

__all__ = ["swapped_prediction_loss"]
