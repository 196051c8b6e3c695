"""Ops of policy optimisation."""

from rmfast.kernels.policy.gae import gae
from rmfast.kernels.policy.losses import policy_loss, value_loss

__all__ = ["gae", "policy_loss", "value_loss"]
