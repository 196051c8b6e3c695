"""MetaRM's difference loss over the samples of each prompt."""

from rmfast.kernels.difference_loss.op import difference_loss

__all__ = ["difference_loss"]
