"""The clipped losses of proximal policy optimisation."""

from rmfast.kernels.clipped_losses.op import policy_loss, value_loss

__all__ = ["policy_loss", "value_loss"]
