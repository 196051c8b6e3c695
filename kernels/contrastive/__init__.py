"""Contrastive objectives over the items of a batch: instances (InfoNCE) and clusters (swapped prediction)."""

from rmfast.kernels.contrastive.info_nce import info_nce
from rmfast.kernels.contrastive.sinkhorn import sinkhorn
from rmfast.kernels.contrastive.swapped import swapped_prediction_loss

__all__ = ["info_nce", "sinkhorn", "swapped_prediction_loss"]
