"""Swapped prediction (SwAV): each view of an item predicts the other's code."""

from rmfast.kernels.swapped_prediction_loss.op import swapped_prediction_loss

__all__ = ["swapped_prediction_loss"]
