"""The pairwise ranking loss over preference edges."""

from rmfast.kernels.ranking_loss.op import ranking_loss

__all__ = ["ranking_loss"]
